//! Faults in osqueryd's flag file and our own.

use std::path::Path;

use super::{Fault, Host, NO_SUCH, examine, fault, find, look};

#[rustfmt::skip]
pub(super) const FAULTS: &[Fault] = &[
    fault("flag file", "failure", "osquery.flags:17: --flagfile=/no/such can't be read, which ends osqueryd: No such file",
        "correct this --flagfile", |host| host.lines.push_str("--flagfile=/no/such\n")),
    fault("flag file", "failure", "osquery.flags is empty: osqueryd's next start has no flags",
        "put the flags back", |host| host.raw_flagfile(b"\n")),
    fault("flag file", "failure", "osquery.flags is UTF-8 with a byte order mark (BOM)",
        "sed -i '1s/", |host| host.raw_flagfile(b"\xef\xbb\xbf--tls_hostname=x\n")),
    fault("flag file", "failure", "osquery.flags is UTF-16: osqueryd finds no flag in it",
        "iconv -f UTF-16", |host| host.raw_flagfile(b"\xff\xfe-\0-\0u\0t\0c\0\n\0")),
    fault("flag file", "failure", "takes it for another program's name and leaves out all that is behind it (1 flag)",
        "put -- before", |host| host.lines.push_str("tls_hostname=x\n--verbose\n")),
    fault("flag file", "failure", "--utc has its value behind a space",
        "--utc=VALUE", |host| host.lines.push_str("--utc false\n")),
    fault("flag file", "failure", "--proxy_hostname has no value",
        "--proxy_hostname=VALUE", |host| host.lines.push_str("--proxy_hostname\n")),
    fault("flag file", "warning", "quotes around the value of --host_identifier",
        "remove", |host| host.lines.push_str("--host_identifier=\"uuid\"\n")),
    // Case doctor-flags/blank-behind-a-number.flags (osquery#5347, #7697).
    fault("flag values", "failure", "--distributed_tls_max_attempts=30   ends osqueryd: blanks stand behind",
        "remove the blanks", |host| host.lines.push_str("--distributed_tls_max_attempts=30  \n")),
    fault("flag file", "failure", "line ends of both kinds", "sed -i", |host| host.lines.push_str("--verbose\r\n")),
    fault("flag names", "warning", "osqueryd has no flag --tls_hostnam and drops",
        "is --tls_hostname meant?", |host| host.lines.push_str("--tls_hostnam=x\n")),
    fault("flag names", "warning", "no flag --buffer_path",
        "put --buffer_path=VALUE into ", |host| host.lines.push_str("--buffer_path=/x\n")),
    fault("flag names", "warning", "no flag --custom_remote_tls_request_timeout",
        "put --request_timeout=VALUE into ", |host| host.lines.push_str("--custom_remote_tls_request_timeout=9\n")),
    fault("flag names", "warning", "no flag --custom_of_others",
        "only a configuration's \"options\"", |host| host.lines.push_str("--custom_of_others=9\n")),
    fault("flag values", "failure", "--logger_tls_period=soon ends osqueryd",
        "correct", |host| host.flag("logger_tls_period", "soon")),
    fault("flag values", "failure", "--tls_hostname=https://fleet can't be used",
        "correct --tls_hostname", |host| host.flag("tls_hostname", "https://fleet")),
    fault("flag values", "failure", "--proxy_hostname=<hidden>@http://p can't be used",
        "correct", |host| host.flag("proxy_hostname", "me:hunter2@http://p")),
    fault("flag values", "warning", "--host_identifier=name means hostname",
        "choose one of hostname, uuid", |host| host.flag("host_identifier", "name")),
    fault("flag values", "warning", "without --specified_identifier",
        "set --specified_identifier", |host| host.flag("host_identifier", "specified")),
    fault("flag combinations", "failure", "no plugin of osqueryd is this extension's",
        "--logger_plugin=remote_tls", |host| {
        for registry in ["config", "logger", "distributed"] { host.flag(&format!("{registry}_plugin"), "filesystem"); }
    }),
    fault("flag combinations", "warning", "--logger_plugin=remote_tls,tls: the server gets everything twice",
        "without tls", |host| host.flag("logger_plugin", "remote_tls,tls")),
    fault("flag combinations", "failure", "osquery has no logger plugin remote_tls.ext, and does not start without it",
        "set --logger_plugin=filesystem,remote_tls", |host| host.flag("logger_plugin", "filesystem,remote_tls.ext")),
    fault("flag combinations", "failure", "--config_plugin=remotetls: osquery has no config plugin remotetls",
        "set --config_plugin=remote_tls", |host| host.flag("config_plugin", "remotetls")),
    fault("flag combinations", "warning", "--logger_plugin=remote_tls,splunk: osquery has no logger plugin splunk",
        "the extension that brings splunk", |host| host.flag("logger_plugin", "remote_tls,splunk")),
    fault("flag combinations", "failure", "--config_tls_endpoint= can't be used",
        "set --config_tls_endpoint", |host| host.flag("config_tls_endpoint", "")),
    fault("flag combinations", "failure", "--disable_extensions=true",
        "remove --disable_extensions", |host| host.flag("disable_extensions", "true")),
    fault("flag combinations", "failure", "--extensions_require=remote_tls.ext",
        "the extension's name is remote_tls", |host| host.flag("extensions_require", "remote_tls.ext")),
    fault("flag combinations", "warning", "--disable_distributed is true",
        "--disable_distributed=false", |host| host.flag("disable_distributed", "true")),
    fault("flag combinations", "warning", "--config_refresh is 0",
        "--config_refresh=300", |host| host.flag("config_refresh", "0")),
    fault("flag combinations", "warning", "--allow_unsafe=true",
        "remove --allow_unsafe", |host| host.lines.push_str("--allow_unsafe\n")),
    fault("flag combinations", "warning", "--ephemeral=true: osqueryd keeps no node key",
        "remove --ephemeral", |host| host.flag("ephemeral", "true")),
    fault("own flags", "failure", "remote_tls.flags:1: there is no flag --no_such",
        "correct the line", |host| drop(host.file("remote_tls.flags", "--no_such=1\n"))),
    fault("own flags", "failure", "--request_timeout=0 can't be used",
        "correct the value", |host| drop(host.file("remote_tls.flags", "--request_timeout=0\n"))),
    fault("own flags", "failure", "--tls_pins=x can't be used",
        "until then no request is made", |host| drop(host.file("remote_tls.flags", "--tls_pins=x\n"))),
    fault("own flags", "warning", "--metrics_file can't be written: the directory /no/such is not there",
        "make the directory, or correct --metrics_file in ",
        |host| drop(host.file("remote_tls.flags", "--metrics_file=/no/such/x.prom\n"))),
    fault("own flags", "warning", "--log_file can't be written: the directory /no/such is not there",
        "make the directory, or correct --log_file in ",
        |host| drop(host.file("remote_tls.flags", "--log_file=/no/such/log\n"))),
    fault("own flags", "warning", "osquery.flags is no directory", "make the directory",
        |host| drop(host.file("remote_tls.flags", &format!("--log_file={}/log\n", host.path("osquery.flags").display())))),
];

#[test]
fn what_is_wrong_with_flags_is_said() {
    find(FAULTS);
}

#[test]
fn a_flag_file_that_is_not_there_is_named() {
    let examined = examine(Path::new("/no/such.flags"), Path::new(NO_SUCH), &[]);
    examined.must_say("flag file", "failure", "/no/such.flags can't be read", "--flagfile");
    examined.must_say("flag combinations", "skipped", "no flag is known", "");
}

#[test]
fn an_operator_s_choice_of_plugins_is_no_fault() {
    for (name, value) in [("config_plugin", "filesystem"), ("config_plugin", "tls"), ("logger_plugin", "filesystem")] {
        let mut host = Host::new();
        host.flag(name, value);
        let examined = look(&host.flagfile(), &host.path("remote_tls.flags"), &[]);
        assert_eq!(examined.problems().len(), 0, "--{name}={value}: {:#?}", examined.problems());
    }
}
