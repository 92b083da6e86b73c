"""probe.py HOST: asks the server under that name every 50 ms for its major version, as its clients would: the name looked up anew, a
new connection with a password (PGPASSWORD), a query. For each attempt it prints a line: when it ended, in seconds, and the major, or 0
where nobody answered. An attempt that hangs, because its packets went to a container that is gone, keeps none of the others waiting.
"""

import sys
import threading
import time

import psycopg2

PERIOD = 0.05
MOST_AT_ONCE = 60  # with those that hang for two seconds


def attempt():
    major = 0
    try:
        connection = psycopg2.connect(host=sys.argv[1], user="admin", dbname="bench", connect_timeout=2)
        with connection.cursor() as cursor:
            cursor.execute("select current_setting('server_version_num')::int / 10000")
            (major,) = cursor.fetchone()
        connection.close()
    except psycopg2.Error:
        pass
    sys.stdout.write(f"{time.time():.3f} {major}\n")
    sys.stdout.flush()


due = time.monotonic()
while True:
    if threading.active_count() <= MOST_AT_ONCE:
        threading.Thread(target=attempt, daemon=True).start()
    now = time.monotonic()
    due = max(due + PERIOD, now)
    time.sleep(due - now)
