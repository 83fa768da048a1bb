//! Our tables, asked through osqueryd.

use serde_json::json;

use crate::rig::{Host, real};

#[test]
fn tables_answer_in_osqueryd_s_sql() {
    let Some(real) = real() else { return };
    let host = Host::new(&real, json!({"schedule": {"one": {"query": "SELECT random() AS r", "interval": 1}}}));
    host.start();
    host.more_results(1);
    let endpoints = host.sql("SELECT * FROM remote_tls_endpoints ORDER BY name");
    let names: Vec<_> = endpoints.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["config", "distributed read", "distributed write", "enroll", "logger"]);
    for row in endpoints.iter().filter(|row| row["name"] != "distributed write") {
        assert_eq!(row["last_status"], "200", "{row:?}");
        assert_ne!(row["last_success"], "0", "{row:?}");
    }
    let url = endpoints[4]["url"].as_str().unwrap();
    assert_eq!(url, format!("https://{}/log", host.server.hostname()));

    host.wait("delivered lines", || {
        let rows = host.sql("SELECT * FROM remote_tls_buffer WHERE stream = 'results' AND delivered > 0");
        rows.first().map(|row| assert_eq!(row["dropped"], "0", "{row:?}"))
    });
    let streams = host.sql("SELECT stream FROM remote_tls_buffer ORDER BY stream");
    assert_eq!(streams.len(), 3, "{streams:?}");

    let enrollment =
        host.sql("SELECT enrolled, since <= unix_time AS past, server_name FROM remote_tls_enrollment, time");
    assert_eq!(enrollment.len(), 1);
    assert_eq!((enrollment[0]["enrolled"].as_str(), enrollment[0]["past"].as_str()), (Some("1"), Some("1")));
    assert_eq!(enrollment[0]["server_name"], host.server.hostname().as_str());

    assert!(host.sql("SELECT * FROM remote_tls_rejected").is_empty());
    let columns =
        host.sql("SELECT name, active FROM osquery_registry WHERE registry = 'table' AND name LIKE 'remote_tls%'");
    assert_eq!(columns.len(), 4, "{columns:?}");
    host.stop();
}

#[test]
fn a_line_that_is_set_aside_is_a_row() {
    let Some(real) = real() else { return };
    let large = json!({"query": "SELECT 'large' AS what, hex(zeroblob(2000)) AS filler", "interval": 1});
    let host = Host::new(&real, json!({"schedule": {"large": large}}));
    host.flag("logger_tls_max_linesize", "2000");
    host.start();
    let row = host.wait("a row", || {
        let rows = host.try_sql("SELECT * FROM remote_tls_rejected WHERE stream = 'results'").ok()?;
        rows.into_iter().next()
    });
    assert!(row["size"].as_str().unwrap().parse::<u64>().unwrap() > 4000, "{row:?}");
    assert!(row["beginning"].as_str().unwrap().contains("\"name\":\"large\""), "{row:?}");
    assert!(!row["reason"].as_str().unwrap().is_empty(), "{row:?}");
    host.stop();
}
