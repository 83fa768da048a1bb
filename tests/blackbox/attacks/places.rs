//! Directories and files that another user could change, or has left there: nothing of theirs is followed, written to,
//! read as ours or waited for.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use osquery_remote_tls::extension::socket::connect_at_once;
use rustix::process::Signal;

use crate::rig::{LIMIT, Rig, SECRET, Setup, at_once, line, memory_of, mode, signal};

const VICTIM: &str = "what root has written\n";

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Lines are taken and delivered.
fn lines_go_on(rig: &Rig) {
    rig.log(&line(7));
    assert_eq!(rig.delivered(1), [7]);
}

#[test]
fn a_buffer_directory_that_others_may_write_is_not_used_and_lines_wait_in_memory() {
    for buffers in [0o777, 0o1777, 0o775] {
        let setup = Setup::new();
        let directory = setup.path().join("remote_tls");
        fs::create_dir(&directory).unwrap();
        mode(&directory, buffers);
        let rig = setup.start();
        rig.config();
        lines_go_on(&rig);
        rig.said("not to be trusted: others may write in");
        assert!(!directory.join("config.json").exists(), "{buffers:o}");
        // As soon as that is mended, it is used.
        mode(&directory, 0o700);
        rig.osqueryd.wait("a journal", LIMIT, || {
            rig.log(&line(8));
            directory.join("results").is_dir().then_some(())
        });
    }
}

#[test]
fn a_buffer_directory_below_one_that_others_may_write_is_not_used() {
    // One group's users have replaced it, and had a file of root's deleted through a link.
    for (group, open_mode) in [(0, 0o777), (12345, 0o775)] {
        let setup = Setup::new();
        let open = setup.path().join("open");
        fs::create_dir(&open).unwrap();
        if chown(&open, None, Some(group)).is_err() {
            eprintln!("skipped for the group {group}: only root can give a directory away");
            continue;
        }
        mode(&open, open_mode);
        let rig = setup.own_flag(&format!("--buffer_path={}", open.join("remote_tls").display())).start();
        rig.config();
        lines_go_on(&rig);
        rig.said("not to be trusted: others may write in");
        assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
    }
}

/// A listener of another user's under our name for private sockets, whose backlog is full: `connect` would wait for ever.
#[test]
fn a_socket_left_for_us_that_takes_no_connections_holds_nothing_up() {
    let setup = Setup::new();
    let left = UnixListener::bind(setup.path().join("rtls.osquery.em")).unwrap();
    rustix::net::listen(&left, 0).unwrap();
    let path = left.local_addr().unwrap();
    let waiting: Vec<UnixStream> = (0..10).map_while(|_| connect_at_once(path.as_pathname().unwrap()).ok()).collect();
    assert!((1..10).contains(&waiting.len()), "a full backlog");
    let rig = setup.start();
    rig.config();
    lines_go_on(&rig);
}

#[test]
fn a_configuration_that_another_user_has_left_is_not_given_to_osqueryd() {
    at_once(["link", "hard link", "owner", "directory"], |attack| {
        let setup = Setup::new().flag("config_tls_max_attempts", "1");
        let directory = setup.path().join("remote_tls");
        fs::create_dir(&directory).unwrap();
        mode(&directory, 0o700);
        let planted = setup.file("planted", r#"{"schedule":{"planted":{"query":"SELECT 1","interval":1}}}"#);
        let kept = directory.join("config.json");
        match attack {
            "link" => symlink(&planted, &kept).unwrap(),
            "hard link" => fs::hard_link(&planted, &kept).unwrap(),
            "owner" => {
                fs::copy(&planted, &kept).unwrap();
                std::os::unix::fs::chown(&kept, Some(65534), None).unwrap();
            }
            _ => {
                fs::copy(&planted, &kept).unwrap();
                mode(&directory, 0o777);
            }
        }
        let rig = setup.start();
        rig.server.stop();
        let outcome = rig.gen_config();
        assert_eq!(outcome.code, 1, "{attack}: {:?}", outcome.rows);
    });
}

#[test]
fn nothing_is_written_through_a_link_that_was_left_for_the_configuration() {
    let setup = Setup::new();
    let directory = setup.path().join("remote_tls");
    fs::create_dir(&directory).unwrap();
    mode(&directory, 0o700);
    let victim = setup.file("victim", VICTIM);
    symlink(&victim, directory.join("config.new")).unwrap();
    let rig = setup.start();
    let given = rig.config().1;
    assert!(!given.is_empty());
    assert_eq!(fs::read_to_string(&victim).unwrap(), VICTIM);
    let kept = fs::symlink_metadata(directory.join("config.json")).unwrap();
    assert!(kept.is_file() && kept.mode() & 0o077 == 0, "{:o}", kept.mode());
}

#[test]
fn nothing_is_appended_to_another_s_file_by_the_log() {
    for attack in ["link", "hard link", "owner"] {
        let setup = Setup::new();
        let victim = setup.file("victim", VICTIM);
        let log = setup.path().join("own.log");
        match attack {
            "link" => symlink(&victim, &log).unwrap(),
            "hard link" => fs::hard_link(&victim, &log).unwrap(),
            _ => {
                fs::write(&log, "").unwrap();
                std::os::unix::fs::chown(&log, Some(65534), None).unwrap();
            }
        }
        let rig = setup.own_flag(&format!("--log_file={}", log.display())).start();
        rig.config();
        rig.said("can't be written, the log goes on without it");
        assert_eq!(fs::read_to_string(&victim).unwrap(), VICTIM, "{attack}");
        assert!(attack != "owner" || fs::read_to_string(&log).unwrap().is_empty());
    }
}

#[test]
fn pipes_in_the_place_of_files_make_no_thread_wait() {
    let setup = Setup::new().flag("tls_enroll_max_attempts", "1").flag("config_tls_max_attempts", "1");
    let (secret, log) = (setup.path().join("secret-pipe"), setup.path().join("log-pipe"));
    let directory = setup.path().join("remote_tls");
    fs::create_dir_all(directory.join("results")).unwrap();
    for path in [directory.clone(), directory.join("results")] {
        mode(&path, 0o700);
    }
    for path in [
        &secret,
        &log,
        &directory.join("config.json"),
        &directory.join("config.new"),
        &directory.join("rejected.ndjson"),
        &directory.join("results/cursor"),
        &directory.join("results/writer.lock"),
        &directory.join("results/0000000000000000.ndjson"),
    ] {
        pipe(path);
    }
    let rig = setup
        .flag("enroll_secret_path", &secret.display().to_string())
        .own_flag(&format!("--log_file={}", log.display()))
        .start();
    let outcome = rig.gen_config();
    assert!(outcome.code == 1 && outcome.message.contains("no regular file"), "{}", outcome.message);
    rig.log(&line(1));
    fs::remove_file(&secret).unwrap();
    fs::write(&secret, SECRET).unwrap();
    rig.config();
    assert_eq!(rig.delivered(1), [1]);
    rig.log("no JSON");
    rig.osqueryd.wait("the line in the table", LIMIT, || {
        (!rig.osqueryd.query("SELECT * FROM remote_tls_rejected").unwrap().is_empty()).then_some(())
    });
}

#[test]
fn a_flag_file_that_is_a_pipe_or_has_no_end_is_named_and_passed_over() {
    for attack in ["pipe", "endless"] {
        let setup = Setup::new();
        let flags = setup.path().join("left.flags");
        match attack {
            "pipe" => pipe(&flags),
            _ => {
                let file = fs::File::create(&flags).unwrap();
                file.set_len(1 << 40).unwrap();
            }
        }
        let (server, mut options, directory) = setup.finish();
        options.env.push(("REMOTE_TLS_FLAGFILE".to_owned(), flags.display().to_string()));
        let osqueryd = testkit::osqueryd::Osqueryd::start_bare(options);
        let rig = Rig { osqueryd, server, directory };
        rig.wait_attached();
        rig.config();
        rig.said("our flag file");
    }
}

/// Issue 15: files of any size were read whole, here of 64 GiB.
#[test]
fn files_without_end_in_the_buffers_cost_no_memory() {
    let setup = Setup::new().flag("config_tls_max_attempts", "1");
    let directory = setup.path().join("remote_tls");
    fs::create_dir(&directory).unwrap();
    mode(&directory, 0o700);
    for name in ["config.json", "rejected.ndjson"] {
        fs::File::create(directory.join(name)).unwrap().set_len(1 << 36).unwrap();
    }
    let rig = setup.start();
    let worker = rig.worker_pid();
    let idle = memory_of(worker, "VmRSS:");
    super::forget_peak(worker);
    rig.config();
    assert_eq!(rig.osqueryd.query("SELECT * FROM remote_tls_rejected").unwrap().len(), 0);
    let peak = memory_of(worker, "VmHWM:").saturating_sub(idle);
    assert!(peak < 48 << 10 && worker == rig.worker_pid(), "{peak} KiB over idle");
}

#[test]
fn what_was_moved_aside_is_kept_in_a_bounded_number() {
    let setup = Setup::new();
    let results = setup.path().join("remote_tls/results");
    fs::create_dir_all(&results).unwrap();
    for path in [results.parent().unwrap(), &results] {
        mode(path, 0o700);
    }
    for number in 0..40 {
        fs::create_dir(results.join(format!("{number:016}.ndjson"))).unwrap_or_default();
        fs::write(results.join(format!("cursor.damaged-{number}")), "").unwrap();
    }
    let rig = setup.start();
    rig.config();
    lines_go_on(&rig);
    let left = fs::read_dir(&results).unwrap().filter(|entry| {
        let entry = entry.as_ref().unwrap();
        entry.file_name().to_string_lossy().starts_with("cursor.damaged-")
    });
    assert!(left.count() < 16);
}

#[test]
fn a_binary_that_another_user_has_put_in_place_is_not_run() {
    for attack in ["owner", "mode"] {
        let rig = Setup::new().flag("extensions_interval", "1").start();
        rig.config();
        let [ran, new, binary] =
            ["ran", "upgrade", "osquery-remote-tls.ext"].map(|name| rig.directory.path().join(name));
        fs::write(&new, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
        mode(&new, if attack == "mode" { 0o777 } else { 0o755 });
        if attack == "owner" {
            std::os::unix::fs::chown(&new, Some(65534), None).unwrap();
        }
        fs::rename(&new, &binary).unwrap();
        rig.said("another binary is at");
        // Nor when a worker has to be started.
        signal(rig.worker_pid(), Signal::KILL);
        rig.said("starting another one");
        lines_go_on(&rig);
        assert!(!ran.exists(), "{attack}: it was run");
    }
}
