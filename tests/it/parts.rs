//! Parts of a cluster, other versions, and which backup is meant.

use serde_json::Value;

use crate::house::{House, docker, sql};

#[test]
fn a_part_of_a_backup_is_restored() {
    let house = House::new("parts");
    let dump = "[backup.dump]\ndatabases = [\"*\", \"!scratch_*\"]\nexclude_table_data = [\"audit.*\"]";
    let source = house.cluster("source", "17", dump);
    let container = format!("{source}-db");
    for database in ["shop", "other", "scratch_1"] {
        sql(&container, "postgres", &format!("create database {database}"));
    }
    sql(&container, "postgres", "create role keeper login; alter database shop set work_mem = '7MB'");
    let tables = "create table customers (id int primary key, name text unique);
        create table orders (id int primary key, customer int references customers, note text);
        create index by_note on orders (note);
        insert into customers select g, 'c' || g from generate_series(1, 100) g;
        insert into orders select g, g, md5(g::text) from generate_series(1, 100) g;
        create schema audit; create table audit.log as select g from generate_series(1, 100) g;
        alter table orders owner to keeper";
    sql(&container, "shop", tables);
    let set = house.backup(&source);

    let manifest = house.manifest(&source, &set);
    let names = |list: &Value| -> Vec<String> {
        let items = list.as_array().expect("a list").iter();
        items.filter_map(|item| Some(item["database"].as_str()?.to_owned())).collect()
    };
    assert_eq!(names(&manifest["skipped"]), ["scratch_1"]);
    assert_eq!(manifest["skipped"][0]["intended"], true);

    // Only looking makes nothing: no container, no volume, no policy.
    let into = house.name("part");
    house.pglife(&["restore", &source, "--into", &into, "--dry-run"]).ok().says(&["nothing was done", &set]);
    let newer = ["restore", &source, "--into", &into, "--major"];
    house.pglife(&[&newer[..], &["15"]].concat()).exits(4).says(&["17", "15", "older"]);
    let part = ["restore", &source, "--into", &into, "--database"];
    house.pglife(&[&part[..], &["nothere"]].concat()).exits(5).says(&["nothere", "shop"]);
    let made = docker(&["ps", "-a", "--format", "{{.Names}}"]) + &docker(&["volume", "ls", "--format", "{{.Name}}"]);
    assert!(!made.contains(&into), "{made}");
    assert!(!house.path(&format!("policies/{into}.toml")).exists());

    // One database, into a newer version.
    house.pglife(&[&part[..], &["shop", "--major", "18"]].concat()).ok();
    let copy = format!("{into}-db");
    assert_eq!(databases(&copy), "postgres,shop,template1");
    assert_eq!(sql(&copy, "shop", "select count(*), count(distinct note) from orders"), "100|100");
    assert_eq!(sql(&copy, "shop", "select count(*) from audit.log"), "0", "its rows were to be left out");
    assert_eq!(
        sql(&copy, "shop", "select current_setting('work_mem'), current_setting('server_version_num')::int / 10000"),
        "7MB|18"
    );
    assert_eq!(sql(&copy, "shop", "select tableowner from pg_tables where tablename = 'orders'"), "keeper");
    house.pglife(&[&part[..], &["shop"]].concat()).exits(4).says(&["policy says PostgreSQL 18", "--major 18"]);
    house.pglife(&[&part[..], &["shop", "--major", "18"]].concat()).exits(4).says(&["already there", &copy]);

    // The rows of one table, and the definitions of all.
    let table = house.name("table");
    let of_table = |name: &str| {
        let words = ["restore", &source, "--into", &table, "--database", "shop", "--table", name];
        house.pglife(&words)
    };
    of_table("public.nothere").exits(5).says(&["public.nothere"]);
    of_table("public.orders").exits(3).says(&["only public.orders has rows", "foreign keys"]);
    let copy = format!("{table}-db");
    let counts =
        "select (select count(*) from customers), (select count(*) from orders), (select count(*) from audit.log)";
    assert_eq!(sql(&copy, "shop", counts), "0|100|0");
    let indexes = "select string_agg(indexname, ',' order by indexname) from pg_indexes where schemaname = 'public'";
    assert_eq!(sql(&copy, "shop", indexes), "by_note,customers_name_key,customers_pkey,orders_pkey");
}

#[test]
fn a_backup_is_found_by_time_name_and_order() {
    let house = House::new("which");
    let source = house.cluster("source", "17", "");
    let container = format!("{source}-db");
    sql(&container, "postgres", "create database closed");
    sql(&container, "postgres", "alter database closed allow_connections false");

    // Nobody can dump it: the backup of the rest is made, and says so.
    let ended = house.pglife(&["backup", &source]).exits(3).says(&["\"closed\"", "refuses connections", "!"]);
    assert!(ended.stdout.contains(&source));
    let first = house.items(&["backups", "list", &source])[0]["set"].as_str().expect("an id").to_owned();
    let skipped = &house.manifest(&source, &first)["skipped"];
    assert_eq!((skipped[0]["database"].as_str(), skipped[0]["intended"].as_bool()), (Some("closed"), Some(false)));
    sql(&container, "postgres", "drop database closed");
    sql(&container, "postgres", "create database later");
    let second = house.backup(&source);

    let shown = |selector: &str| house.items(&["backups", "show", &source, "--backup", selector]).remove(0);
    let set = |selector: &str| set_of(&shown(selector));
    let completed =
        |selector: &str| house.manifest(&source, selector)["completed_at"].as_str().expect("a time").to_owned();
    assert_eq!(set("latest"), second);
    assert_eq!(set("oldest"), first);
    assert_eq!(set(&first), first);
    let different = first.bytes().zip(second.bytes()).position(|(a, b)| a != b).expect("they differ");
    assert_eq!(set(&first[..=different]), first);
    assert_eq!(set(&format!("@{}", completed(&first))), first);
    assert_eq!(set(&format!("@{}", completed(&second))), second);
    let show = ["backups", "show", &source, "--backup"];
    house.pglife(&[&show[..], &["@2001-01-01T00:00Z"]].concat()).exits(5);
    house.pglife(&[&show[..], &[&first[..4]]].concat()).exits(2).says(&[&first, &second]);
    house.pglife(&[&show[..], &["2001"]].concat()).exits(5);
    house.pglife(&[&show[..], &["nonsense"]].concat()).exits(2).says(&["nonsense", "latest", "oldest"]);

    // A restore takes the same names.
    let copy = house.name("copy");
    house.pglife(&["restore", &source, "--into", &copy, "--backup", "oldest"]).exits(3).says(&["\"closed\""]);
    assert_eq!(databases(&format!("{copy}-db")), "admin,postgres,template1");
}

fn set_of(item: &Value) -> String {
    let set = item.get("set").or_else(|| item["manifest"].get("set"));
    set.and_then(Value::as_str).expect("an id").to_owned()
}

fn databases(container: &str) -> String {
    let names = "select string_agg(datname, ',' order by datname) from pg_database where datallowconn";
    sql(container, "postgres", names)
}
