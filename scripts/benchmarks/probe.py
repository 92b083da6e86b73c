"""probe.py HOST: asks the server under that name every 50 ms for its major version, as its clients would: the name looked up anew, a
new connection with a password (PGPASSWORD), a query. For each attempt it prints a line: when it ended, in seconds, and the major, or 0
where nobody answered. One that takes longer than 50 ms delays the next one, which these lines show.
"""

import sys
import time

import psycopg2

PERIOD = 0.05

due = time.monotonic()
while True:
    major = 0
    try:
        connection = psycopg2.connect(host=sys.argv[1], user="admin", dbname="bench", connect_timeout=2)
        with connection.cursor() as cursor:
            cursor.execute("select current_setting('server_version_num')::int / 10000")
            (major,) = cursor.fetchone()
        connection.close()
    except psycopg2.Error:
        pass
    print(f"{time.time():.3f} {major}", flush=True)
    now = time.monotonic()
    due = max(due + PERIOD, now)
    time.sleep(due - now)
