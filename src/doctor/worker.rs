//! The extension's processes: whether they answer, and whether the worker stays. A worker that dies is replaced at once and
//! costs no line, so only the log and this check show it.

use std::thread;
use std::time::{Duration, Instant};

use super::answering::Running;
use super::subject::Subject;
use super::told;
use super::{Check, Report};
use crate::control::WORKER_NAME;
use crate::platform::ProcessInfo;
use crate::words::counted;

/// A worker that is younger, and came later than its front did, is worth a second look.
const YOUNG: Duration = Duration::from_secs(60);

/// A front's first worker is there so soon, where osqueryd was there before it. That counts only for workers that don't say their
/// number, which an older version's don't.
const AT_ONCE: Duration = Duration::from_secs(3);

/// How long that second look takes.
const SECOND_LOOK: Duration = Duration::from_secs(6);

const LOG: &str =
    "see the extension's lines in osqueryd's log, or its own (--log_file): \"the worker ... ended\" says how";

pub(super) fn check(subject: &Subject, report: &mut Report<'_>) {
    const CHECK: Check = Check::Worker;
    let Ok(running) = &subject.running else { return report.skip(CHECK, "osqueryd can't be asked") };
    if subject.is_before() || !matches!(running.extension, Ok(Some(_))) {
        let reason = subject.told.as_ref().err().map_or("there is no extension", String::as_str);
        return report.skip(CHECK, reason);
    }
    let deaths = watch(subject, running);
    match (&subject.told, deaths) {
        (_, Some(seen)) => report.fail(CHECK, format!("the worker dies again and again: {seen}"), LOG),
        (Err(error), None) => {
            report.fail(CHECK, format!("the extension does not answer: {error}"), format!("{LOG}; restart osqueryd"))
        }
        (Ok(_), None) => match told::workers(&subject.workers) {
            Some((front, workers)) if is_replaced(front, &workers) => {
                report.warn(CHECK, young(front, &workers), format!("nothing after an upgrade or a SIGHUP; else {LOG}"))
            }
            Some((_, workers)) => {
                report.ok(CHECK, format!("the extension answers; its worker runs for {} s", oldest(&workers)));
            }
            None => report.ok(CHECK, "the extension answers"),
        },
    }
}

/// Whether there were other workers a short while ago. The first worker comes when osqueryd has answered, however long its front
/// has waited for that.
fn is_replaced(front: Duration, workers: &[&ProcessInfo]) -> bool {
    let is_late = |worker: &&ProcessInfo| number(worker).map_or(worker.age + AT_ONCE <= front, |number| number > 1);
    workers.iter().all(|worker| worker.age < YOUNG && is_late(worker))
}

/// Which of its front's workers it is: the first is 1.
fn number(worker: &ProcessInfo) -> Option<u64> {
    worker.arguments.first()?.strip_prefix(WORKER_NAME)?.parse().ok()
}

fn young(front: Duration, workers: &[&ProcessInfo]) -> String {
    let ages = format!("the worker runs for {} s only, and the extension for {} s", oldest(workers), front.as_secs());
    match workers.iter().filter_map(|worker| number(worker)).max() {
        Some(number) => format!("{ages}: {} were started", counted(number, "worker")),
        None => ages,
    }
}

fn oldest(workers: &[&ProcessInfo]) -> u64 {
    workers.iter().map(|worker| worker.age.as_secs()).max().unwrap_or(0)
}

/// Looks again where a worker is a late one: the processes that were seen, when they were several.
fn watch(subject: &Subject, running: &Running) -> Option<String> {
    let Ok(Some((uuid, _))) = &running.extension else { return None };
    let (front, first) = told::workers(&subject.workers)?;
    if !is_replaced(front, &first) {
        return None;
    }
    let mut seen: Vec<u32> = ids(&first);
    let deadline = Instant::now() + subject.left(SECOND_LOOK);
    while Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
        let now = told::processes(&subject.socket, *uuid);
        for id in told::workers(&now).map(|(_, workers)| ids(&workers)).unwrap_or_default() {
            if !seen.contains(&id) {
                seen.push(id);
            }
        }
        // One that comes may have been asked for. Two in such a time have not.
        if seen.len() >= first.len() + 2 {
            let shown: Vec<String> = seen.iter().map(u32::to_string).collect();
            return Some(format!("processes {} within {} s", shown.join(", "), SECOND_LOOK.as_secs()));
        }
    }
    None
}

fn ids(workers: &[&ProcessInfo]) -> Vec<u32> {
    workers.iter().map(|worker| worker.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str, age: u64) -> ProcessInfo {
        let arguments = vec![name.to_owned(), "--worker".to_owned()];
        ProcessInfo { id: 2, parent: 1, arguments, directory: "/".into(), age: Duration::from_secs(age) }
    }

    fn replaced(front: u64, name: &str, age: u64) -> bool {
        is_replaced(Duration::from_secs(front), &[&worker(name, age)])
    }

    #[test]
    fn the_first_worker_has_replaced_none_however_late_it_came() {
        assert!(!replaced(9, "remote_tls.ext: worker 1", 4));
        assert!(replaced(9, "remote_tls.ext: worker 2", 4));
        assert!(!replaced(900, "remote_tls.ext: worker 7", 61));
        // Of an older version.
        assert!(replaced(9, "remote_tls.ext: worker", 4));
        assert!(!replaced(9, "remote_tls.ext: worker", 8));
        assert_eq!(
            young(Duration::from_secs(9), &[&worker("remote_tls.ext: worker 3", 4)]),
            "the worker runs for 4 s only, and the extension for 9 s: 3 workers were started"
        );
    }
}
