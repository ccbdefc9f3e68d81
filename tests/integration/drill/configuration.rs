//! The keys of `[drill]`: what is wrong is named with its file and line.

use std::ffi::OsString;

use pgkeep::config::{DrillQuery, Overrides, Settings};

fn load(drill: &str, environment: &[(&str, &str)]) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pgkeep.toml");
    std::fs::write(&path, drill).unwrap();
    let overrides = Overrides { config: Some(path.clone()), cluster: None };
    let environment = environment.iter().map(|(k, v)| (OsString::from(k), OsString::from(v)));
    Settings::load_with(&overrides, environment.collect()).map_err(|e| {
        let hints: String = e.hints().iter().map(|hint| format!("\n{hint}")).collect();
        format!("{e}{hints}").replace(&path.display().to_string(), "FILE")
    })
}

#[test]
fn queries_and_settings_are_read_in_order() {
    let settings = load(
        r#"
        [drill]
        user = "checker"
        timeout = "2min"
        settings = { shared_buffers = "1GB", max_connections = 7, jit = false }

        [[drill.queries]]
        database = "app"
        sql = "select count(*) from t"
        expect = 5

        [[drill.queries]]
        cluster = "billing"
        database = "app"
        sql = "select 'a'"
        expect = "a"
        "#,
        &[],
    );
    let drill = settings.unwrap().drill;
    assert_eq!(drill.user.as_deref(), Some("checker"));
    assert_eq!(drill.timeout.as_secs(), 120);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let expected =
        [pair("shared_buffers", "1GB"), pair("max_connections", "7"), pair("jit", "off")];
    assert_eq!(drill.settings, expected);
    let query = |cluster: Option<&str>, sql: &str, expect: &str| DrillQuery {
        cluster: cluster.map(str::to_owned),
        database: "app".into(),
        sql: sql.into(),
        expect: expect.into(),
    };
    assert_eq!(
        drill.queries,
        [query(None, "select count(*) from t", "5"), query(Some("billing"), "select 'a'", "a")]
    );
    let none = load("", &[]).unwrap().drill;
    assert!(none.queries.is_empty() && none.amcheck && none.timeout.as_secs() == 600);
}

#[test]
fn the_environment_has_them_as_the_file_does() {
    let queries = r#"[{ database = "app", sql = "select 1", expect = "1" }]"#;
    let settings = r#"{ work_mem = "64MB" }"#;
    let environment = [
        ("PGKEEP_DRILL__QUERIES", queries),
        ("PGKEEP_DRILL__SETTINGS", settings),
        ("PGKEEP_DRILL__BIN_DIR", "/opt/pg/bin"),
    ];
    let drill = load("[drill]\nuser = 'x'\n", &environment).unwrap().drill;
    assert_eq!((drill.queries.len(), drill.settings.len()), (1, 1));
    assert_eq!(drill.bin_dir.unwrap().to_str(), Some("/opt/pg/bin"));
    let e = load("", &[("PGKEEP_DRILL__QUERIES", "select 1")]).unwrap_err();
    assert!(
        e.starts_with("drill.queries (PGKEEP_DRILL__QUERIES): it isn't a value in TOML"),
        "{e}"
    );
}

#[test]
fn what_is_wrong_is_named_with_key_file_and_line() {
    for (drill, error) in [
        ("[drill]\nqueries = 'x'", "drill.queries (FILE, line 2): it isn't a list"),
        (
            "[drill]\nqueries = [\n  5,\n]",
            "drill.queries[0] (FILE, line 3): it is of type integer, not a table",
        ),
        (
            "[drill]\nqueries = [\n { database = 'a', sql = 'b', expect = 'c' },\n { database = 'a', sql = 'b' },\n]",
            "drill.queries[1] (FILE, line 4): expect isn't set",
        ),
        (
            "[drill]\nqueries = [\n { database = 'a', sql = '', expect = 'c' } ]",
            "drill.queries[0] (FILE, line 3): sql is empty",
        ),
        (
            "[drill]\n[[drill.queries]]\ndatabase = 'a'\nsql = 'b'\nexpect = true",
            "drill.queries[0].expect (FILE, line 5): a value of type boolean where a text is expected",
        ),
        (
            "[drill]\nqueries = [{ database = 'a', sql = 'b',\n expected = 'c' }]",
            "drill.queries[0].expected (FILE, line 3): a query has no such key",
        ),
        (
            "[drill]\nsettings = { archive_mode = 'on' }",
            "drill.settings.archive_mode (FILE, line 2): a drill sets this itself",
        ),
        (
            "[drill]\nsettings = { recovery_target_time = 'x' }",
            "drill.settings.recovery_target_time (FILE, line 2): a drill sets this itself",
        ),
        (
            "[drill]\nsettings = { \"a b\" = 'on' }",
            "drill.settings.a b (FILE, line 2): that isn't the name of a setting",
        ),
        ("[drill]\ntimeout = '1s'", "drill.timeout (FILE, line 2): \"1s\" is out of range"),
        (
            "[drill]\nbin-dir = 'pg/bin'",
            "drill.bin-dir (FILE, line 2): \"pg/bin\" isn't an absolute path",
        ),
        ("[drill]\nquery = 'x'", "unknown key drill.query (FILE, line 2)"),
        ("drill = 5", "drill (FILE, line 1): it has to be a table"),
        (
            "[drill]\nuser = ['x']",
            "drill.user (FILE, line 2): a value of type array where a text is expected",
        ),
    ] {
        let e = load(drill, &[]).unwrap_err();
        assert!(e.starts_with(error), "{drill}\n{e}");
        assert!(e.contains('\n'), "a hint: {e}");
    }
}
