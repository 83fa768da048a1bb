//! Decorations on the lines that osqueryd decorates (results), and on those that we do (statuses).

use serde_json::{Value, json};

use crate::rig::{Host, real};

/// With one decorator of each kind; `always` differs from one run of the query to the next.
fn config() -> Value {
    json!({
        "decorators": {
            "load": ["SELECT 'loaded' AS at_load, 'two' AS and_more"],
            "always": ["SELECT CAST(unix_time AS TEXT) AS at_line FROM time"],
            "interval": {"60": ["SELECT 'a minute' AS at_interval"]}
        },
        "schedule": {
            "lines": {"query": "SELECT random() AS r", "interval": 1},
            "whole": {"query": "SELECT 1 AS one", "interval": 1, "snapshot": true}
        }
    })
}

/// Waits until a result line, a snapshot and a status line have all decorations, which takes a full minute of the
/// clock at most: osqueryd runs the interval's when its seconds can be divided by 60. `of` is where they stand.
fn all_kinds_have_them(host: &Host, of: fn(&Value) -> &Value) {
    let decorated = |line: &&Value| {
        let decorations = of(line);
        decorations["at_load"] == "loaded"
            && decorations["and_more"] == "two"
            && decorations["at_interval"] == "a minute"
            && decorations["at_line"].as_str().is_some_and(|at| at.parse::<u64>().is_ok())
    };
    let mut kinds = [false; 3];
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while kinds != [true; 3] {
        let results = host.server.results();
        kinds[0] = results.iter().filter(|line| line["name"] == "lines").any(|line| decorated(&line));
        kinds[1] = results.iter().filter(|line| line["name"] == "whole").any(|line| decorated(&line));
        kinds[2] = host.server.statuses().iter().any(|line| decorated(&line));
        let last = |lines: Vec<Value>| lines.last().map(Value::to_string).unwrap_or_default();
        assert!(
            std::time::Instant::now() < deadline,
            "result, snapshot, status have all decorations: {kinds:?}\n{}\n{}",
            last(results),
            last(host.server.statuses())
        );
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    // At each line anew: two lines of different seconds have different ones.
    let mut seconds: Vec<String> =
        host.server.results().iter().filter_map(|line| Some(of(line)["at_line"].as_str()?.to_owned())).collect();
    seconds.dedup();
    assert!(seconds.len() > 1, "{seconds:?}");
}

#[test]
fn result_and_status_lines_carry_the_decorations() {
    let Some(real) = real() else { return };
    let host = Host::new(&real, config());
    host.start();
    all_kinds_have_them(&host, |line| &line["decorations"]);
    host.stop();
}

#[test]
fn decorations_stand_in_the_line_itself_when_that_is_asked_for() {
    let Some(real) = real() else { return };
    let host = Host::new(&real, config());
    host.flag("decorations_top_level", "true");
    host.start();
    all_kinds_have_them(&host, |line| line);
    host.stop();
}
