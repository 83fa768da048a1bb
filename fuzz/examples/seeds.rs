//! Writes the seeds anew: `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.
//!
//! They are made of what servers and osqueryd really say (tests/blackbox/samples), of the test kit's certificates, and
//! of certificates of each kind that is judged in a way of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use targets::answers::{AS_IT_CAME, LIMITED, NODE_KEY, PACKED};
use targets::certificates::HOST;
use targets::der::{AUTHORITY, Attribute, Certificate, Constraints, Signer, Usage, authority_name, tag};
use targets::inflated;
use targets::settings::{PASSWORD, SEPARATOR};
use targets::thrift::{CONVERSATION, LENGTH, TIMES};
use targets::wire::{self, REPLY, kind};

const NAME: &[u8] = b"remote_tls";

fn main() -> io::Result<()> {
    thrift()?;
    answers()?;
    settings()?;
    certificates()
}

/// Of an inflated input: head, piece and tail.
type Parts = [&'static [u8]; 3];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sample(name: &str) -> Vec<u8> {
    fs::read(repository().join("tests/blackbox/samples").join(name)).expect("a sample")
}

fn write(target: &str, name: &str, seed: &[u8]) -> io::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(name), seed)
}

fn thrift() -> io::Result<()> {
    let call = |registry: &str, request: &[(&str, &[u8])]| wire::call(registry.as_bytes(), NAME, request, 1);
    let ping = wire::message(wire::CALL, b"ping", 0, &wire::structure(&[]));
    let shutdown = wire::message(wire::CALL, b"shutdown", 0, &wire::structure(&[]));
    let calls: [(&str, Vec<u8>); 12] = [
        ("ping", ping.clone()),
        ("shutdown", shutdown),
        ("unknown_method", wire::message(wire::CALL, b"query", 3, &wire::structure(&[]))),
        ("gen_config", call("config", &[("action", b"genConfig")])),
        ("gen_pack", call("config", &[("action", b"genPack"), ("name", b"p"), ("value", b"*")])),
        ("get_queries", call("distributed", &[("action", b"getQueries")])),
        ("features", call("logger", &[("action", b"features")])),
        ("init", call("logger", &[("init", b"remote_tls"), ("log", b"[]")])),
        ("string", call("logger", &[("string", &sample("05_log_line_added.json"))])),
        ("snapshot", call("logger", &[("snapshot", &sample("05_log_line_snapshot_empty.json"))])),
        ("statuses", call("logger", &[("status", b"true"), ("log", &sample("07b_thrift_status_log_param.json"))])),
        (
            "write_results",
            call(
                "distributed",
                &[("action", b"writeResults"), ("results", &sample("11_thrift_writeResults_results_param.json"))],
            ),
        ),
    ];
    for (name, seed) in &calls {
        write("thrift", name, seed)?;
    }
    write("thrift", "ping_and_features", &[ping, call("logger", &[("action", b"features")])].concat())?;

    let status = wire::structure(&[
        wire::field(kind::I32, 1, &0i32.to_be_bytes()),
        wire::field(kind::STRING, 2, &wire::string(b"OK")),
        wire::field(kind::I64, 3, &7i64.to_be_bytes()),
    ]);
    let row = wire::string_map(&[("version", "5.19.0")]);
    let response = wire::structure(&[
        wire::field(kind::STRUCT, 1, &status),
        wire::field(kind::LIST, 2, &wire::list(kind::MAP, &[row])),
    ]);
    let option = wire::structure(&[
        wire::field(kind::STRING, 1, &wire::string(b"fleet")),
        wire::field(kind::STRING, 4, &wire::string(b"string")),
    ]);
    let options = [&[kind::STRING, kind::STRUCT, 0, 0, 0, 1][..], &wire::string(b"tls_hostname"), &option].concat();
    let extension = wire::structure(&[wire::field(kind::STRING, 1, &wire::string(NAME))]);
    let extensions = [&[kind::I64, kind::STRUCT, 0, 0, 0, 1][..], &7i64.to_be_bytes(), &extension].concat();
    for (method, kind, result) in [
        ("ping", kind::STRUCT, &status),
        ("registerExtension", kind::STRUCT, &status),
        ("query", kind::STRUCT, &response),
        ("call", kind::STRUCT, &response),
        ("options", kind::MAP, &options),
        ("extensions", kind::MAP, &extensions),
    ] {
        let result = wire::structure(&[wire::field(kind, 0, result)]);
        write("thrift", &format!("answer_{method}"), &wire::message(REPLY, method.as_bytes(), 1, &result))?;
    }
    large_calls()?;
    large_messages()
}

/// The forms are those of `thrift::VALUES`.
fn large_calls() -> io::Result<()> {
    let status = br#"{"s":1,"f":"f","i":1,"m":"m"},"#;
    let calls: [(&str, u8, Parts); 10] = [
        ("no_lines", 8, [b"", b"x", b""]),
        ("string", 1, [b"{\"a\":\"", b"a line ", b"\"}"]),
        ("string_of_no_text", 1, [b"", b"\xff", b""]),
        ("batch", 2, [b"[", b"{},", b"{}]"]),
        ("statuses", 3, [b"[", status, br#"{"s":1,"i":1}]"#]),
        ("init", 4, [b"[", b"{},", b"{}]"]),
        ("results", 5, [b"{\"queries\":{\"q\":[", b"{},", b"{}]}}"]),
        ("action", 6, [b"", b"\xc3\xa9", b""]),
        ("action_of_controls", 6, [b"", b"\x1b\xa9", b""]),
        ("pack", 7, [b"", b"name", b""]),
    ];
    for (name, form, [head, piece, tail]) in calls {
        let times = if name.starts_with("string") { u16::MAX } else { 1000 };
        write("thrift", &format!("large_{name}"), &inflated::input(form, times, head, piece, tail))?;
    }
    Ok(())
}

fn large_messages() -> io::Result<()> {
    let reply = |kind: u8, id: u8, content: &[u8]| {
        [&wire::message(REPLY, b"query", 1, &[])[..], &[kind, 0, id], content].concat()
    };
    let rows = [kind::LIST, 0, 2, kind::MAP];
    let row = wire::string_map(&[("a", "")]);
    let option = [&wire::string(b"o")[..], &wire::structure(&[])].concat();
    let options = [kind::STRING, kind::STRUCT];
    let ping = wire::message(wire::CALL, b"ping", 0, &wire::structure(&[]));
    let call = wire::call(b"logger", NAME, &[("", "")], 1);
    // What comes behind the request's only entry, whose value is empty.
    let (head, stop) = call.split_at(call.len() - 5);
    for (name, head, piece, tail) in [
        ("rows", [&reply(kind::STRUCT, 0, &rows)[..], &TIMES].concat(), row, vec![0, 0]),
        (
            "empty_rows",
            [&reply(kind::STRUCT, 0, &rows)[..], &TIMES].concat(),
            wire::string_map::<&str, &str>(&[]),
            vec![0, 0],
        ),
        ("options", [&reply(kind::MAP, 0, &options)[..], &TIMES].concat(), option, vec![0]),
        ("entries", [&call[..call.len() - 13], &TIMES].concat(), vec![0; 8], vec![0]),
        ("value", [head, &LENGTH].concat(), b"x".to_vec(), stop[4..].to_vec()),
    ] {
        write("thrift", &format!("large_message_{name}"), &inflated::input(CONVERSATION, 500, &head, &piece, &tail))?;
    }
    write("thrift", "many_pings", &inflated::input(CONVERSATION, 20, &ping, &ping, b""))
}

fn answers() -> io::Result<()> {
    let seed = |asked: u8, status: u16, header: &str, body: &[u8]| {
        [&[asked][..], &status.to_be_bytes(), header.as_bytes(), b"\n", body].concat()
    };
    // The endpoint is in the lowest bits of what was asked.
    for (asked, status, header, name) in [
        (0, 200, "", "02_enroll_response_ok.json"),
        (0, 200, "", "02b_enroll_response_ok_flag.json"),
        (0, 200, "", "02c_enroll_response_id_key.json"),
        (0, 200, "", "02d_enroll_response_key_and_invalid_true.json"),
        (0, 401, "120", "02e_enroll_response_rejected_http401.json"),
        (16, 200, "", "02f_enroll_response_empty_key.json"),
        (1, 200, "", "04_config_response_fleet.json"),
        (1, 200, "", "04b_config_response_nulls.json"),
        (1, 401, "", "04d_config_response_invalid_http401.json"),
        (2, 200, "", "08_log_response_ok.json"),
        (2, 500, "Wed, 21 Oct 2015 07:28:00 GMT", "08c_log_response_error_http500.json"),
        (2, 500, "99999999", "08d_response_html_500.html"),
        (2, 204, "/elsewhere?a=b", "08e_response_empty_body"),
        (3, 200, "", "10_distributed_read_response_discovery_accelerate.json"),
        (3, 200, "", "10f_distributed_read_response_node_invalid.json"),
        (3, 200, "", "10g_distributed_read_response_error_no_flag.json"),
        (4, 500, "", "12b_distributed_write_response_retry_http500.json"),
        (2, 200, "", "07b_thrift_status_log_param.json"),
    ] {
        write("answers", name, &seed(asked, status, header, &sample(name)))?;
    }
    let wrapped = br#"{"config":"{\"schedule\":{\"q\":{\"query\":\"SELECT 1\",\"interval\":60}}}"}"#;
    write("answers", "config_node_api", &seed(1 | 8, 200, "", wrapped))?;
    write("answers", "config_small_limits", &seed(1 | 32, 200, "", br#"{"a":[[1]],"b":"[[[["}"#))?;
    write("answers", "config_one_too_deep", &seed(1 | 32, 200, "", br#"{"a":[[[1]]]}"#))?;
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(64 - 7));
    write("answers", "config_one_too_long", &seed(1 | 32, 200, "", long.as_bytes()))?;
    write("answers", "redirect_same_host", &seed(0x40, 302, "https://FLEET.example.com:8443/x?y#z", b""))?;
    write("answers", "redirect_elsewhere", &seed(0, 302, "https://fleet.example.com@evil.example.com:443/", b""))?;
    write("answers", "redirect_v6", &seed(0x80, 302, "https://[::1]:8443/x", b""))?;
    let words = format!(r#"{{"node_invalid":true,"error":"{}"}}"#, "no ".repeat(600));
    write("answers", "error_of_many_words", &seed(2, 401, "", words.as_bytes()))?;
    // As PHP and .NET write it.
    write("answers", "enroll_key_escaped", &seed(0, 200, "", br#"{"node_key":"q\/8Z\u002B\u0022"}"#))?;
    // A number that readers of the one member that counts skip, and that no reader of all of them takes.
    let large = br#"{"node_key": "k", "x": 1e999}"#;
    write("answers", "enroll_with_a_number_too_large", &seed(0, 200, "", large))?;
    let repeated = serde_json::json!({ "error": format!("unknown key {NODE_KEY}"), "node_invalid": true });
    write("answers", "error_with_the_key", &seed(2, 401, "", repeated.to_string().as_bytes()))?;
    write("answers", "garbage_with_the_key", &seed(2, 200, "", format!("[\"{NODE_KEY}\"]").as_bytes()))?;
    large_bodies()
}

/// What costs much for its size: where a tree is made of it, where it is repaired, where it is shown.
fn large_bodies() -> io::Result<()> {
    let bodies: [(&str, u8, u16, Parts); 15] = [
        ("members", 2, 200, [br#"{"a":1"#, br#","a":{}"#, b"}"]),
        ("error", 2, 401, [br#"{"error":["#, b"[],", b"1]}"]),
        ("error_text", 3, 200, [br#"{"error":""#, br"\u00e9", br#""}"#]),
        ("status", 4, 200, [br#"{"status":["#, b"[],", b"1]}"]),
        ("node_invalid", 4, 200, [br#"{"node_invalid":{"a":["#, b"{},", b"1]}}"]),
        ("node_key", 0, 200, [br#"{"node_key":["#, b"{},", b"1]}"]),
        ("key_text", 0, 200, [br#"{"node_key":""#, b"key", br#""}"#]),
        ("queries", 3, 200, [br#"{"queries":{"#, br#""a":"","#, br#""b":"SELECT 1"}}"#]),
        ("configuration", 1, 200, [br#"{"schedule":{"#, br#""a":{"query":"","interval":1},"#, br#""b":{}}}"#]),
        ("decorators", 1, 200, [br#"{"decorators":{"load":["#, br#"{},"SELECT 1","#, b"1]}}"]),
        ("decorators_of_a_comma", 1, 200, [br#"{"decorators":{"load":["#, br#"","#, b"1]}}"]),
        ("options", 1, 200, [br#"{"options":{"#, br#""a":[],"#, br#""b":1}}"#]),
        ("wrapped", 1 | 8, 200, [br#"{"config":"{\"packs\":["#, br"{},", br#"1]}"}"#]),
        ("member_of_no_text", 1, 200, [b"{\"decor\xa2tors\":[", br#""","#, b"1]}"]),
        ("no_text", 2, 500, [b"<html>", b"\xff", b""]),
    ];
    for (name, asked, status, [head, piece, tail]) in bodies {
        let head = [&[asked][..], &status.to_be_bytes(), head].concat();
        let input = |form: u8, times: u16| inflated::input(form, times, &head, piece, tail);
        write("answers", &format!("large_{name}"), &input(0, 400))?;
        write("answers", &format!("large_{name}_packed"), &input(PACKED, 400))?;
    }
    let head = [2, 0, 200, b'{'];
    write("answers", "larger_than_is_read", &inflated::input(LIMITED, 1000, &head, b"        ", b"}"))?;
    write(
        "answers",
        "larger_than_is_read_packed",
        &inflated::input(LIMITED | PACKED, u16::MAX, &head, b"        ", b"}"),
    )?;
    // What must not be in a part of such an input, a gzip member has only by chance.
    let head = inflated::input(PACKED, 0, b"{\"a\":1}", b"", b"");
    let member = inflated::Inflated::of(&head, 1).expect("an input of that form").packed();
    write("answers", "packed_by_others", &inflated::input(AS_IT_CAME, 0, &[&[2, 0, 200], &*member].concat(), b"", b""))
}

fn settings() -> io::Result<()> {
    let flags = "# ours\n--buffer_path=/var/lib/remote_tls\n-request_timeout=30\n--return_timeout=90\n\
                 --buffer_max_bytes=1048576\n--buffer_min_free_bytes=0\n--logger_max_request_bytes=1024\n";
    let seeds = [
        ("flagfile", flags.to_owned()),
        (
            "flagfile_with_bad_lines",
            "--no_such_flag=1\n--request_timeout\nrequest_timeout=3\n--buffer_path=\n".to_owned(),
        ),
        (
            "options",
            format!(
                "{SEPARATOR}\ntls_hostname=fleet.example.com:8443\nlogger_tls_period=10\nlogger_tls_max_lines=100\n\
                 logger_tls_max_linesize=1000\nlogger_tls_backoff_max=0\nbuffered_log_max=0\nlogger_tls_compress=true\n\
                 tls_enroll_max_attempts=0\ntls_enroll_max_interval=60\nconfig_tls_max_attempts=5\ntls_node_api=1\n\
                 enroll_secret_path=/etc/osquery/secret\nhost_identifier=uuid\nverbose=yes\n"
            ),
        ),
        (
            "options_of_ours",
            format!(
                "--request_timeout=9\n{SEPARATOR}\ncustom_remote_tls_request_timeout=7\n\
                 custom_remote_tls_return_timeout=0\ncustom_remote_tls_buffer_path=/elsewhere\n\
                 custom_remote_tls_logger_max_request_bytes=4096\ndatabase_path=/a/b/c\n"
            ),
        ),
        ("address_v6", format!("{SEPARATOR}\ntls_hostname=[::1]:443\nproxy_hostname=[fe80::1]\n")),
        ("proxy", format!("{SEPARATOR}\nproxy_hostname=me:{PASSWORD}@proxy.example.com:8080\n")),
        ("proxy_unusable", format!("{SEPARATOR}\nproxy_hostname=me:{PASSWORD}@http://proxy\ntls_client_cert=/c.pem\n")),
        (
            "unusable_values",
            format!(
                "--request_timeout=soon\n{SEPARATOR}\nlogger_tls_period=-1\nverbose=maybe\ntls_hostname=https://x/\n"
            ),
        ),
    ];
    for (name, seed) in &seeds {
        write("settings", name, seed.as_bytes())?;
    }
    let options = format!("{SEPARATOR}\n");
    for (name, head, piece, tail) in [
        ("large_flagfile", "# ours\n", "--request_timeout=30\n", "--return_timeout=90\n"),
        ("large_flagfile_of_bad_lines", "", "x\n", ""),
        ("large_value", "--buffer_path=/", "a/", "\n"),
        ("large_option", &format!("{options}tls_hostname="), "a.", "b\n"),
        ("many_servers", &format!("{options}tls_hostname=a"), ",a", "\n"),
        ("many_options", &options, "a=b\n", "verbose=true\n"),
    ] {
        write("settings", name, &inflated::input(0, 200, head.as_bytes(), piece.as_bytes(), tail.as_bytes()))?;
    }
    Ok(())
}

fn certificates() -> io::Result<()> {
    let dns = |name: &str| (tag::DNS_NAME, name.as_bytes().to_vec());
    let leaf = |common_names: &[&str], alternatives: Option<Vec<(u8, Vec<u8>)>>| Certificate {
        issuer: authority_name(),
        subject: common_names.iter().map(|name| Attribute::common_name(name)).collect(),
        alternatives,
        constraints: Constraints::Absent,
        usage: Usage::Any,
        limits: None,
        key: Signer::Server,
        signer: Signer::Authority,
    };
    let address = || (tag::IP_ADDRESS, vec![10, 0, 0, 1]);
    let issued = [
        ("alternative_name", HOST, leaf(&["other"], Some(vec![dns(HOST), address()]))),
        ("alternative_wildcard", HOST, leaf(&[], Some(vec![dns("*.example.com")]))),
        ("alternative_address", "10.0.0.1", leaf(&[], Some(vec![dns("x"), address()]))),
        ("common_name", HOST, leaf(&["other", HOST], None)),
        ("common_wildcard", HOST, leaf(&["*.example.com"], None)),
        ("another_name", HOST, leaf(&["fleet.example.com.evil"], Some(vec![dns("xfleet.example.com")]))),
        ("for_clients", HOST, Certificate { usage: Usage::Client, ..leaf(&[], Some(vec![dns(HOST)])) }),
        ("limited", HOST, Certificate { limits: Some("example.com"), ..leaf(&[HOST], None) }),
    ];
    for (name, host, certificate) in issued {
        let itself = Certificate { issuer: certificate.subject.clone(), signer: Signer::Server, ..certificate.clone() };
        let seed =
            |mode: u8, certificate: &Certificate| [&[mode][..], host.as_bytes(), b"\n", &certificate.signed()].concat();
        write("certificates", &format!("issued_{name}"), &seed(1, &certificate))?;
        write("certificates", &format!("itself_{name}"), &seed(0, &itself))?;
    }
    let pem = pem(&AUTHORITY);
    write("certificates", "bundle_authority", &[&[2][..], pem.as_bytes()].concat())?;
    for name in ["v1-ca.pem", "v1-leaf.pem", "weak-leaf.pem"] {
        let fixture = fs::read(repository().join("tests/kit/fixtures").join(name))?;
        write("certificates", &format!("bundle_{name}"), &[&[2], fixture.as_slice()].concat())?;
        let certificate = CertificateDer::from_pem_slice(&fixture).expect("a certificate");
        write("certificates", &format!("itself_{name}"), &[b"\0localhost\n", &*certificate].concat())?;
    }
    Ok(())
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in certificate.chunks(3) {
        let number = three.iter().fold(0, |number, &byte| number << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        for index in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= three.len() { digit.into() } else { '=' });
        }
    }
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}
