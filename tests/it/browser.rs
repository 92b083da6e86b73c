//! The daemon's pages in a browser: Chromium, driven by WebDriver.

use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::consul::ask;
use crate::daemon::{Daemon, http_port};
use crate::house::{House, free_port, sql, wait_for};

/// A browser with one window.
struct Browser {
    port: u16,
    session: String,
}

/// A fault of the page, as the browser's console has it.
const SEVERE: &str = "SEVERE";

impl Browser {
    fn start(house: &House) -> Self {
        let port = free_port();
        let arguments = ["--network", "host", "--shm-size", "256m", "pglife/test-chromium", &format!("--port={port}")];
        house.foreign("browser", &arguments);
        wait_for("the driver", || ask(port, "GET", "/status", None, "").1.contains("\"ready\":true"));
        let mut browser = Self { port, session: String::new() };
        let options = json!({ "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"] });
        let wanted = json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } });
        let made = browser.call("POST", "/session", json!({ "capabilities": { "alwaysMatch": wanted } }));
        let id = made["sessionId"].as_str().expect("a session").to_owned();
        browser.session = format!("/session/{id}");
        browser
    }

    fn call(&self, method: &str, path: &str, body: Value) -> Value {
        let path = format!("{}{path}", self.session);
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let (status, text) = ask(self.port, method, &path, None, &body);
        assert_eq!(status, 200, "{method} {path}: {text}");
        serde_json::from_str::<Value>(&text).expect("JSON")["value"].clone()
    }

    fn open(&self, url: &str) {
        self.call("POST", "/url", json!({ "url": url }));
    }

    /// What the body of a function returns.
    fn script(&self, body: &str) -> Value {
        self.call("POST", "/execute/sync", json!({ "script": body, "args": [] }))
    }

    fn chrome(&self, command: &str, parameters: Value) -> Value {
        self.call("POST", "/goog/cdp/execute", json!({ "cmd": command, "params": parameters }))
    }

    /// A window of this width, and of a telephone's or a desk's height.
    fn resize(&self, width: u32) {
        let height = if width < 600 { 800 } else { 900 };
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.chrome("Emulation.setDeviceMetricsOverride", size);
    }

    fn scheme(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.chrome("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// What the console complained of since it was asked last.
    fn complaints(&self) -> Vec<String> {
        let entries = self.call("POST", "/se/log", json!({ "type": "browser" }));
        let severe = entries.as_array().expect("a list").iter().filter(|entry| entry["level"] == SEVERE);
        severe.map(|entry| entry["message"].to_string()).collect()
    }

    /// The whole page as PNG, which must show something; also put into the folder that `PGLIFE_SCREENSHOTS` names, with the names
    /// that a user's containers would have.
    fn picture(&self, name: &str, prefix: &str) {
        self.script(&format!("document.body.innerHTML = document.body.innerHTML.replaceAll('{prefix}', '')"));
        let shot = self.chrome("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
        let data = shot["data"].as_str().expect("a picture");
        let picture = base64::engine::general_purpose::STANDARD.decode(data).expect("base64");
        assert!(picture.starts_with(b"\x89PNG"), "{name} is no PNG");
        let colours = colours(&picture);
        assert!(colours >= 8, "{name} has {colours} colours only: nothing was drawn");
        if let Some(folder) = std::env::var_os("PGLIFE_SCREENSHOTS") {
            std::fs::write(std::path::Path::new(&folder).join(format!("{name}.png")), picture).expect("written");
        }
    }

    /// The text of the page.
    fn text(&self) -> String {
        self.script("return document.body.innerText").as_str().expect("a text").to_owned()
    }
}

/// How many colours a picture has.
fn colours(picture: &[u8]) -> usize {
    let mut reader = png::Decoder::new(std::io::Cursor::new(picture)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let frame = reader.next_frame(&mut pixels).expect("a frame");
    let size = frame.color_type.samples();
    pixels[..frame.buffer_size()].chunks(size).collect::<std::collections::HashSet<_>>().len()
}

/// The lowest contrast (WCAG 2.1) of a text that is drawn, and the text.
const CONTRAST: &str = r"
const part = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 };
const light = c => 0.2126 * part(c[0]) + 0.7152 * part(c[1]) + 0.0722 * part(c[2]);
const parse = text => { const n = text.match(/[\d.]+/g).map(Number); return n.length == 4 && n[3] == 0 ? null : n };
const behind = element => { for (let e = element; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c) return c } return [255, 255, 255] };
let worst = [21, ''];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(node => node.nodeType == 3 && node.textContent.trim());
  if (!own || !element.getClientRects().length) continue;
  const style = getComputedStyle(element);
  const ink = parse(element instanceof SVGElement ? style.fill : style.color);
  const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < worst[0]) worst = [ratio, element.textContent.trim().slice(0, 60)];
}
return worst;";

/// What holds of every page, at every width, in both schemes.
fn looks_right(browser: &Browser, name: &str, prefix: &str) {
    for width in [1280, 360] {
        browser.resize(width);
        for scheme in ["dark", "light"] {
            browser.scheme(scheme);
            let wide = browser.script("return [document.documentElement.scrollWidth, window.innerWidth]");
            let inner = wide[1].as_f64().expect("a width");
            assert!(wide[0].as_f64().expect("a width") <= inner, "{name} at {width} px is cut: {wide}");
            let worst = browser.script(CONTRAST);
            assert!(worst[0].as_f64().expect("a ratio") >= 4.5, "{name}, {scheme}: hard to read: {worst}");
        }
        browser.picture(&format!("{name}-{width}"), prefix);
    }
    browser.resize(1280);
    let heads = browser.script("return [...document.querySelectorAll('h1,h2')].map(h => h.tagName)");
    assert_eq!(heads[0], "H1", "{name}: {heads}");
    let nameless = browser.script(
        "return [...document.querySelectorAll('section,figure')].filter(e => !document.getElementById(e.getAttribute('aria-labelledby'))).length",
    );
    assert_eq!(nameless, 0, "{name}: a section without a name");
}

#[test]
fn the_pages_in_a_browser() {
    let house = House::new("browser");
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("pglife.toml", &format!("{settings}\n[http]\nlisten = \"127.0.0.1:0\"\n"));
    let evil = "<script>document.title='taken'</script><img src=x onerror=alert(1)>";
    let follows =
        ["--label", &format!("pglife.depends-on={}", house.name("shop")), "--label", &format!("pglife.order={evil}")];
    let sleeps = ["--entrypoint", "sleep", "pglife/postgres:17", "1000"];
    let web = house.foreign("web", &[&follows[..], &sleeps].concat());
    let shop = house.cluster(
        "shop",
        "17",
        "[backup.dump]\ndatabases = [\"orders\", \"!postgres\", \"!admin\"]\n[freshness]\ndump = { warn = \"26h\", critical = \"50h\" }\n",
    );
    let stale = house.policy("stale", "17", "[freshness]\ndump = { warn = \"26h\", critical = \"50h\" }");
    let container = format!("{shop}-db");
    sql(&container, "postgres", "create database orders");
    sql(&container, "postgres", &format!("create database \"{evil}\""));
    sql(
        &container,
        "orders",
        "create table item as select n as id, repeat('x', 100) as text from generate_series(1, 20000) n",
    );
    house.backup(&shop);
    sql(&container, "orders", "insert into item select * from item");
    let newest = house.backup(&shop);
    house.pglife(&["drill", &shop]).ok();
    let checked = house.pglife(&["check", &shop]).exits(3).stdout;
    assert!(checked.contains("coverage") && checked.contains("onerror"), "{checked}");

    // From now on a slow copy runs each minute.
    let policy = std::fs::read_to_string(house.path(&format!("policies/{shop}.toml"))).expect("read");
    let slow = "[backup.volume]\nschedule = \"* * * * *\"\nrate_limit = \"4MB/s\"\n[freshness]";
    house.write(&format!("policies/{shop}.toml"), &policy.replace("[freshness]", slow));
    let daemon = Daemon::start(&house);
    let browser = Browser::start(&house);
    let port = http_port(&house);
    let page = format!("http://127.0.0.1:{port}");
    wait_for("a look", || {
        browser.open(&page);
        browser.text().contains(&stale)
    });

    // A stale cluster is red, and says why.
    let red = browser.script(&format!(
        "const row = [...document.querySelectorAll('tbody tr')].find(row => row.innerText.includes('{stale}'));\
         const badge = row.querySelector('.badge'); return [badge.innerText, getComputedStyle(badge).color]"
    ));
    assert_eq!(red, json!(["critical", "rgb(180, 35, 24)"]));
    assert!(browser.text().contains("never backed up"), "{}", browser.text());

    // Its keys: the first Tab is at the first cluster, Enter opens its page.
    let tab = json!({ "actions": [{ "type": "key", "id": "keys", "actions": [
        { "type": "keyDown", "value": "\u{e004}" }, { "type": "keyUp", "value": "\u{e004}" }] }] });
    browser.call("POST", "/actions", tab);
    let focus = browser.script(
        "const style = getComputedStyle(document.activeElement); return [document.activeElement.getAttribute('href'), style.outlineStyle]",
    );
    assert_eq!(focus, json!([format!("/clusters/{shop}"), "solid"]));

    // A run's progress moves, without anybody doing anything.
    let progress = || browser.script("const bar = document.querySelector('progress'); return bar && bar.value");
    let mut first = Value::Null;
    wait_for("a run on the page", || {
        first = progress();
        first.as_f64().is_some_and(|done| done > 0.0)
    });
    wait_for("progress", || progress().as_f64().is_some_and(|done| done > first.as_f64().expect("a value")));
    looks_right(&browser, "page", &house.name(""));
    assert_eq!(browser.complaints(), [""; 0]);

    wait_for("a copy", || house.pglife(&["backups", "list", &shop]).stdout.contains("-volume-"));
    browser.open(&format!("{page}/clusters/{shop}"));
    wait_for("the copy on the cluster's page", || {
        browser.script("location.reload()");
        std::thread::sleep(Duration::from_millis(500));
        browser.text().contains("-volume-")
    });
    let drawn = browser.script(
        "return [...document.querySelectorAll('svg.chart')].map(svg => [svg.getBoundingClientRect().width > 200, \
         svg.querySelectorAll('.mark').length, [...svg.querySelectorAll('.mark')].every(mark => mark.getBoundingClientRect().width > 2)])",
    );
    let charts = drawn.as_array().expect("a list");
    assert_eq!(charts.len(), 2, "{drawn}");
    for chart in charts {
        assert!(chart[0] == true && chart[1].as_u64().is_some_and(|marks| marks >= 3) && chart[2] == true, "{drawn}");
    }
    let text = browser.text();
    for part in [&newest, &web, "proven", "onerror", "fixes until 2029-11-08", "pglife explain"] {
        assert!(text.contains(part), "{part} is not on the page:\n{text}");
    }
    let title = browser.script("return [document.title, document.querySelectorAll('script, img').length]");
    assert!(title[0].as_str().is_some_and(|title| title.contains(&shop)) && title[1] == 0, "{title}");
    looks_right(&browser, "cluster", &house.name(""));
    assert_eq!(browser.complaints(), [""; 0]);

    // The same for programs; and a cluster that is not there.
    let (status, answer) = ask(port, "GET", &format!("/api/v1/clusters/{shop}"), None, "");
    let item = serde_json::from_str::<Value>(&answer).expect("JSON")["items"][0].clone();
    assert_eq!((status, item["history"]["sets"].as_array().map(Vec::len).is_some_and(|sets| sets >= 3)), (200, true));
    assert_eq!(item["status"]["coverage"]["uncovered"], json!([]), "the copies of the volumes take all of them");
    for path in ["/clusters/nobody", "/api/v1/clusters/nobody", "/clusters/..%2f..%2fetc", "/clusters/%3Cscript%3E"] {
        let (status, answer) = ask(port, "GET", path, None, "");
        assert!(status == 404 && !answer.contains("<script>"), "{path}: {status} {answer}");
    }
    assert_eq!(daemon.stop(), 0);
}

/// Servers that nobody has a policy for are told, unless their owner says that they need none.
#[test]
fn a_server_without_a_policy_is_told() {
    let house = House::new("uncovered");
    let settings = std::fs::read_to_string(house.path("pglife.toml")).expect("read");
    house.write("pglife.toml", &settings.replace("containers = false", "containers = true"));
    let cluster = house.cluster("covered", "17", "[backup.dump]\ndatabases = [\"app\", \"!postgres\", \"!admin\"]");
    let looks = ["-e", "PGDATA=/var/lib/postgresql/data", "--entrypoint", "sleep", "pglife/postgres:17", "1000"];
    let forgotten = house.foreign("forgotten", &looks);
    let ignored = house.foreign("ignored", &[&["--label", "pglife.ignore=true"], &looks[..]].concat());
    let container = format!("{cluster}-db");
    sql(&container, "postgres", "create database app");
    sql(&container, "postgres", "create database crm");
    house.backup(&cluster);
    let checked = house.pglife(&["check", "--all"]).exits(3).stdout;
    let servers = checked.lines().find(|line| line.contains("no policy covers")).expect("a line");
    assert!(servers.contains(&forgotten) && !servers.contains(&ignored) && !servers.contains(&container), "{servers}");
    assert!(checked.contains("database \"crm\" is in no backup"), "{checked}");
    let explained = house.pglife(&["explain", &cluster, "coverage"]).ok().stdout;
    assert!(explained.contains("\"!crm\"") && explained.contains("pglife backup"), "{explained}");
    // Once the policy speaks of it, it is covered; one cluster alone says nothing of other servers.
    house.write(
        &format!("policies/{cluster}.toml"),
        "[cluster]\nmajor = \"17\"\n[backup.dump]\ndatabases = [\"*\", \"!postgres\"]\n",
    );
    let checked = house.pglife(&["check", &cluster]).ok().stdout;
    assert!(checked.contains("every database is in the backups") && !checked.contains(&forgotten), "{checked}");
}
