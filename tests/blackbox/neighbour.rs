//! An extension that others wrote, on `osquery-rust-ng`, beside ours in the same osqueryd.

use std::path::PathBuf;

use crate::rig::{BINARY, LIMIT, Setup, line, program};

#[test]
fn a_neighbour_registers_beside_ours_and_both_answer() {
    let neighbour = program("neighbour");
    let rig = Setup::new().osqueryd(|options| options.extensions = vec![PathBuf::from(BINARY), neighbour]).start();
    rig.osqueryd.wait("the neighbour", LIMIT, || {
        let names: Vec<String> = rig.osqueryd.registrations().into_iter().map(|one| one.name).collect();
        (names.len() == 2 && names.contains(&"remote_tls".to_owned())).then_some(())
    });
    // It binds its socket only after its registration.
    rig.osqueryd.wait("the neighbour's rows", LIMIT, || {
        rig.osqueryd.query("SELECT * FROM neighbour_numbers").ok().filter(|rows| !rows.is_empty())
    });
    rig.log(&line(0));
    assert_eq!(rig.delivered(1), [0]);
    // osqueryd's tables and flags show them side by side, to ours as well.
    rig.config();
}
