//! What our processes show of themselves to the rest of the host.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::rig::Setup;

#[test]
fn only_osqueryd_s_user_may_use_the_socket_from_the_beginning() {
    let rig = Setup::new().start();
    let uuid = rig.wait_attached();
    let socket = format!("{}.{uuid}", rig.osqueryd.socket().display());
    let found = fs::symlink_metadata(socket).unwrap();
    assert_eq!(found.mode() & 0o777, 0o600);
}

#[test]
fn a_crash_leaves_no_image_with_secrets() {
    let rig = Setup::new().start();
    rig.config();
    for process in [rig.pid(), rig.worker_pid()] {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(cores.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{cores}");
    }
}
