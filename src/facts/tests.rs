use proptest::prelude::*;

use super::*;

fn name(text: &str) -> DatabaseName {
    DatabaseName::new(text).expect("a name")
}

fn table(name: &str, count: u64, hash: &str) -> TableFacts {
    let content = TableContent::Rows { count, hash: Some(hash.to_owned()) };
    TableFacts { schema: "public".to_owned(), name: name.to_owned(), content }
}

fn place(last_value: i64) -> SequencePlace {
    SequencePlace { last_value, is_called: true }
}

fn statement(about: About, name: &str, says: &[(&str, &str)]) -> Statement {
    let says = says.iter().map(|(word, value)| ((*word).to_owned(), (*value).to_owned())).collect();
    Statement { about, name: name.to_owned(), says }
}

fn example() -> Facts {
    let sequence = |name: &str, before, after| SequenceFacts {
        schema: "public".to_owned(),
        name: name.to_owned(),
        before: place(before),
        after: place(after),
    };
    let database = DatabaseFacts {
        tables: vec![table("feature", 1_204_331, "-77"), table("we ird", 0, "0")],
        sequences: vec![sequence("feature_id", 10, 17), sequence("quiet", 5, 5)],
        statements: vec![
            statement(About::Extension, "hstore", &[("version", "1.8"), ("schema", "public")]),
            statement(About::Index, "public.broken", &[("valid", "false")]),
            statement(About::Relation, "public.feature", &[("owner", "postgres")]),
        ],
        seconds: 1.5,
        next_transaction: Some(812),
    };
    Facts {
        cluster: vec![statement(About::Role, "alice", &[("login", "true")])],
        databases: [(name("chado"), database)].into(),
        ..Facts::of_server(170_006, Mode::Full, Algorithm::Record)
    }
}

fn change(change: impl FnOnce(&mut DatabaseFacts)) -> Facts {
    let mut facts = example();
    change(facts.databases.get_mut(&name("chado")).expect("there"));
    facts
}

fn differences(found: &Facts) -> Vec<(Weight, String)> {
    let told = |difference: Difference| (difference.weight, difference.to_string());
    compare(&example(), found).into_iter().map(told).collect()
}

#[track_caller]
fn only(found: &Facts, weight: Weight, words: &str) {
    assert_eq!(differences(found), [(weight, words.to_owned())]);
}

#[test]
fn facts_read_back() {
    let facts = example();
    assert_eq!(Facts::from_bytes(&facts.to_bytes()).expect("facts"), facts);
    let newer = Facts { version: FACTS_VERSION + 1, ..facts };
    assert_eq!(Facts::from_bytes(&newer.to_bytes()), Err(FactsError::Newer { found: 2 }));
}

#[test]
fn a_good_copy_has_no_difference() {
    assert_eq!(differences(&example()), []);
    // Another minor version is the same major.
    assert_eq!(differences(&Facts { server: 170_009, ..example() }), []);
}

#[test]
fn a_lost_row_names_database_table_and_both_counts() {
    let found = change(|database| database.tables[0] = table("feature", 1_204_330, "-78"));
    only(&found, Weight::Bad, "database \"chado\": table public.feature: 1,204,331 rows backed up, 1,204,330 restored");
}

#[test]
fn a_changed_row_is_found_by_its_hash() {
    let found = change(|database| database.tables[0] = table("feature", 1_204_331, "-78"));
    let words = "database \"chado\": table public.feature: 1,204,331 rows, but their content is not what was backed up";
    only(&found, Weight::Bad, words);
}

#[test]
fn what_is_missing_is_bad_and_what_is_too_much_too() {
    let found = change(|database| drop(database.tables.pop()));
    only(&found, Weight::Bad, "database \"chado\": table public.we ird: 0 rows backed up, the table is missing");
    let found = change(|database| database.tables.push(table("more", 1, "1")));
    only(&found, Weight::Bad, "database \"chado\": table public.more: found, but not backed up");
    let found = Facts { cluster: vec![], ..example() };
    only(&found, Weight::Bad, "role alice: backed up, but missing");
    let found = Facts { databases: BTreeMap::new(), ..example() };
    only(&found, Weight::Bad, "database \"chado\": the whole of it: backed up, but not found");
}

#[test]
fn a_sequence_must_lie_between_both_looks() {
    for (value, fine) in [(9, false), (10, true), (13, true), (17, true), (18, false)] {
        let found = change(|database| database.sequences[0].before = place(value));
        assert_eq!(differences(&found).is_empty(), fine, "{value}");
    }
    let found = change(|database| database.sequences[1].before.is_called = false);
    only(&found, Weight::Bad, "database \"chado\": sequence public.quiet: stood at 5, restored at 5 (not given out)");
}

#[test]
fn what_a_restore_may_change_is_a_note() {
    let found = change(|database| drop(database.statements[0].says.insert("version".to_owned(), "1.9".to_owned())));
    let words = "database \"chado\": extension hstore: version: \"1.8\" backed up, \"1.9\" found";
    only(&found, Weight::Note, words);
    let found = change(|database| drop(database.statements.remove(1)));
    let words = "database \"chado\": index public.broken: was invalid, so it is not in the backup";
    only(&found, Weight::Note, words);
    let found = change(|database| drop(database.statements[2].says.insert("owner".to_owned(), "bob".to_owned())));
    assert_eq!(differences(&found)[0].0, Weight::Bad);
    // In another major the catalogues say things in other words; rows do not.
    assert_eq!(differences(&Facts { server: 180_000, ..found })[0].0, Weight::Note);
    let fewer = change(|database| database.tables[0] = table("feature", 1, "1"));
    assert_eq!(differences(&Facts { server: 180_000, ..fewer })[0].0, Weight::Bad);
}

#[test]
fn what_was_never_compared_is_said() {
    let mut expected = example();
    expected.databases.get_mut(&name("chado")).expect("there").tables[0].content =
        TableContent::Unknown("it was dropped".to_owned());
    let found = compare(&expected, &example());
    assert_eq!(
        found[0].to_string(),
        "database \"chado\": table public.feature: its rows were not compared: it was dropped"
    );
    assert_eq!(expected.extent().tables, 1);
}

#[test]
fn what_changed_meanwhile_is_not_held_against_the_backup() {
    let role = |name: &str, value: &str| statement(About::Role, name, &[("login", value)]);
    let mut expected = example();
    let before = vec![role("altered", "1"), role("dropped", "1"), role("kept", "1")];
    expected.settle_cluster(before, &[role("altered", "2"), role("kept", "1"), role("made", "1")]);
    assert_eq!(expected.cluster, [role("kept", "1")]);
    let names: Vec<&str> = expected.changing.iter().map(|subject| subject.name.as_str()).collect();
    assert_eq!(names, ["altered", "dropped", "made"]);
    // pg_dumpall may have seen each of them or not.
    for more in
        [vec![], vec![role("altered", "2"), role("made", "1")], vec![role("altered", "1"), role("dropped", "1")]]
    {
        let found = Facts { cluster: [vec![role("kept", "1")], more].concat(), ..example() };
        let weights: Vec<Weight> = compare(&expected, &found).iter().map(|difference| difference.weight).collect();
        assert_eq!(weights, [Weight::Note; 3]);
    }
    let found = Facts { cluster: vec![role("kept", "1"), role("foreign", "1")], ..example() };
    assert_eq!(compare(&expected, &found)[0].to_string(), "role foreign: found, but not backed up");
}

#[test]
fn an_unknown_cluster_is_not_compared() {
    let expected = Facts { cluster: vec![], cluster_unknown: Some("no connection".to_owned()), ..example() };
    assert_eq!(compare(&expected, &example()), []);
}

#[test]
fn what_nobody_wrote_to_since_is_in_a_later_copy_of_the_files() {
    let mut taken = example();
    let busy = DatabaseFacts { next_transaction: Some(811), ..DatabaseFacts::default() };
    let in_between = DatabaseFacts { next_transaction: None, ..DatabaseFacts::default() };
    taken.databases.extend([(name("busy"), busy), (name("in between"), in_between)]);
    let database = taken.databases.get_mut(&name("chado")).expect("it is there");
    database.statements.push(statement(About::Relation, "public.\"we ird\"", &[("persistence", "u")]));
    let unchanged = taken.unchanged_until(812).expect("a database");
    assert_eq!(unchanged.databases.keys().collect::<Vec<_>>(), [&name("chado")]);
    let known = |table: &TableFacts| matches!(table.content, TableContent::Rows { .. });
    let tables = &unchanged.databases[&name("chado")].tables;
    assert_eq!(tables.iter().map(known).collect::<Vec<_>>(), [true, false], "recovery empties what is not logged");
    // Sequences have gone ahead, and what belongs to no database was asked at another time.
    let mut found = taken.clone();
    let database = found.databases.get_mut(&name("chado")).expect("it is there");
    database.sequences.iter_mut().for_each(|sequence| sequence.before = place(999));
    database.tables[1] = table("we ird", 0, "0");
    let differences = compare(&unchanged, &found);
    assert!(differences.iter().all(|difference| difference.weight == Weight::Note), "{differences:?}");
    found.databases.get_mut(&name("chado")).expect("it is there").tables[0] = table("feature", 1, "-77");
    assert_eq!(compare(&unchanged, &found)[0].weight, Weight::Bad);
    assert_eq!(taken.unchanged_until(813), None);
}

proptest! {
    #[test]
    fn the_order_of_a_catalogue_says_nothing(seed: u64) {
        let found = change(|database| {
            let by = usize::try_from(seed % 3).expect("small");
            database.statements.rotate_left(by);
            let by = usize::try_from(seed % 2).expect("small");
            database.tables.rotate_left(by);
            database.sequences.rotate_left(by);
        });
        prop_assert_eq!(differences(&found), []);
    }

    #[test]
    fn every_other_count_is_a_difference(count: u64) {
        let found = change(|database| database.tables[0] = table("feature", count, "-77"));
        prop_assert_eq!(differences(&found).is_empty(), count == 1_204_331);
    }
}
