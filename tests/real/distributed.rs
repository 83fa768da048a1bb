//! Distributed queries, several at a time, as osqueryd answers them.

use serde_json::json;

use crate::rig::{Host, real};

#[test]
fn several_queries_have_their_results_and_statuses() {
    let Some(real) = real() else { return };
    let host = Host::new(&real, json!({"schedule": {}}));
    host.start();
    host.wait("the tables of ours", || host.try_sql("SELECT * FROM remote_tls_buffer").ok());
    let numbers = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000) SELECT x FROM c";
    host.server.add_query("numbers", numbers);
    host.server.add_query("none", "SELECT 1 AS one WHERE 1 = 2");
    host.server.add_query("wrong", "SELECT * FROM a_table_that_is_not_there");
    host.server.add_query("ours", "SELECT stream FROM remote_tls_buffer ORDER BY stream");
    host.server.add_query("text", "SELECT 'über \"quoted\" \\ and \n a line' AS t");
    let mut queries = serde_json::Map::new();
    let mut statuses = serde_json::Map::new();
    host.wait("five answers", || {
        (queries, statuses) = Default::default();
        for body in host.server.written() {
            queries.extend(body["queries"].as_object()?.clone());
            statuses.extend(body["statuses"].as_object()?.clone());
        }
        (statuses.len() == 5).then_some(())
    });
    assert_eq!(queries["numbers"].as_array().unwrap().len(), 1000);
    assert_eq!(queries["numbers"][999]["x"], "1000");
    assert_eq!(queries["none"], json!([]));
    assert_eq!(queries["ours"], json!([{"stream": "distributed"}, {"stream": "results"}, {"stream": "statuses"}]));
    assert_eq!(queries["text"], json!([{"t": "über \"quoted\" \\ and \n a line"}]));
    for query in ["numbers", "none", "ours", "text"] {
        assert_eq!(statuses[query], 0, "{query}");
    }
    assert_ne!(statuses["wrong"], 0);
    host.stop();
}

#[test]
fn results_that_the_server_refuses_come_later() {
    let Some(real) = real() else { return };
    let host = Host::new(&real, json!({"schedule": {}}));
    host.flag("distributed_tls_max_attempts", "1");
    host.start();
    host.wait("the tables of ours", || host.try_sql("SELECT * FROM remote_tls_buffer").ok());
    let refused = testkit::server::Answer::empty(503);
    host.server.script(testkit::server::Endpoint::DistributedWrite, [refused.clone(), refused]);
    for n in 0..3 {
        host.server.add_query(&format!("n{n}"), &format!("SELECT {n} AS n"));
    }
    host.wait("all three results", || {
        let bodies = host.server.written();
        (0..3)
            .all(|n| bodies.iter().any(|body| body["queries"][format!("n{n}")] == json!([{"n": n.to_string()}])))
            .then_some(())
    });
    host.stop();
}
