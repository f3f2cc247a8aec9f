use super::*;

const GOOD: &str = r#"
[node]
name = "n1"
zone = "a"
data_dir = "/d"
[api]
listen = "127.0.0.1:8443"
[peers]
listen = "0.0.0.0:8444"
advertise = "n1.example:8444"
[admin]
listen = "127.0.0.1:8445"
[hsm]
kind = "pkcs11"
module = "/lib/p11.so"
token_label = "n1"
pin_file = "/d/pin"
[hsm.environment]
SOFTHSM2_CONF = "/d/softhsm2.conf"
[raft]
election_max = "1s"
"#;

fn reasons(text: &str) -> Vec<(usize, String)> {
    Config::parse(text, Path::new("f")).expect_err("must be refused")
}

#[test]
fn a_good_file_is_read_whole() {
    let config = Config::parse(GOOD, Path::new("f")).unwrap();
    assert_eq!(config.name, "n1");
    assert_eq!(config.api.advertise, "127.0.0.1:8443");
    assert_eq!(config.peers.advertise, "n1.example:8444");
    assert_eq!(config.raft.election_max, Duration::from_secs(1));
    assert_eq!(config.raft.heartbeat, Duration::from_millis(60));
    assert_eq!(config.hsm.environment["SOFTHSM2_CONF"], "/d/softhsm2.conf");
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.backup, None);
    assert_eq!(config.reserve, 512 << 20);
    assert_eq!(config.scrub_interval, Duration::from_hours(24));
    assert_eq!(config.format_max, FORMAT);
    let older = GOOD.replace("[api]", "format_max = 1\n[api]");
    assert_eq!(Config::parse(&older, Path::new("f")).unwrap().format_max, 1);
    for unknown in ["0", "99", "\"new\""] {
        let text = GOOD.replace("[api]", &format!("format_max = {unknown}\n[api]"));
        let why = format!("node.format_max must be from 1 to {FORMAT}");
        assert_eq!(reasons(&text), [(6, why)]);
    }
}

#[test]
fn sizes_have_units() {
    for (text, size) in [
        ("4096", Some(4096)),
        ("1KiB", Some(1 << 10)),
        ("256MiB", Some(256 << 20)),
        ("2 GiB", Some(2 << 30)),
        ("1TiB", Some(1 << 40)),
        ("MiB", None),
        ("1MB", None),
        ("-1MiB", None),
        ("99999999999TiB", None),
    ] {
        assert_eq!(bytes(text), size, "{text}");
    }
    let with = |reserve: &str| format!("{GOOD}[storage]\nreserve = \"{reserve}\"\n");
    assert_eq!(Config::parse(&with("1GiB"), Path::new("f")).unwrap().reserve, 1 << 30);
    assert_eq!(reasons(&with("255MiB")).len(), 1);
    let with = |interval: &str| format!("{GOOD}[storage]\nscrub_interval = \"{interval}\"\n");
    let hour = Config::parse(&with("1h"), Path::new("f")).unwrap();
    assert_eq!(hour.scrub_interval, Duration::from_hours(1));
    let why = "storage.scrub_interval must be a duration from \"1m\", such as \"24h\"";
    assert!(reasons(&with("59s"))[0].1.contains(why), "{:?}", reasons(&with("59s")));
    assert_eq!(reasons(&with("daily")).len(), 1);
}

#[test]
fn the_cache_is_bounded() {
    let with = |cache: &str| format!("{GOOD}[cache]\n{cache}\n");
    let config = Config::parse(GOOD, Path::new("f")).unwrap();
    assert_eq!(config.cache, CacheOptions::default());
    let config = Config::parse(&with("keys = 0\nage = \"30s\""), Path::new("f")).unwrap();
    assert_eq!(config.cache, CacheOptions { keys: 0, age: Duration::from_secs(30) });
    for (text, why) in [
        ("keys = 1000001", "cache.keys must be from 0 to 1000000"),
        ("keys = -1", "cache.keys must be from 0 to 1000000"),
        ("age = \"25h\"", "cache.age must be a duration up to \"24h\", such as \"5m\""),
        ("age = \"0s\"", "cache.age must be a duration up to \"24h\", such as \"5m\""),
    ] {
        assert_eq!(reasons(&with(text)), [(23, why.to_owned())], "{text}");
    }
}

#[test]
fn every_reason_is_told_at_once_with_its_line() {
    let text = GOOD
        .replace("name = \"n1\"\nzone", "nam = \"n1\"\nzone")
        .replace("127.0.0.1:8445", "here")
        .replace("election_max = \"1s\"", "election_max = \"soon\"\n[extra]");
    let lines: Vec<_> = reasons(&text)
        .into_iter()
        .map(|(line, reason)| format!("{line} {}", reason.split(';').next().unwrap()))
        .collect();
    assert_eq!(
        lines,
        [
            "2 node.name is missing",
            "3 node.nam is unknown",
            "12 admin.listen must be an IP address and a port, such as 127.0.0.1:8443",
            "21 raft.election_max must be a duration such as \"60ms\" or \"5s\"",
            "22 extra is unknown",
        ]
    );
}

#[test]
fn what_only_together_is_wrong() {
    for (find, replace, expected) in [
        ("advertise = \"n1.example:8444\"\n", "", "`advertise` is needed"),
        ("election_max = \"1s\"", "election_max = \"100ms\"", "`election_min` must be below"),
        ("kind = \"pkcs11\"", "kind = \"paper\"", "must be \"embedded\" or \"pkcs11\""),
        ("[admin]\nlisten = \"127.0.0.1:8445\"\n", "", "the section [admin] is missing"),
        ("zone = \"a\"", "zone = 1.5", "expected a string, got float"),
        ("zone = \"a\"", "zone = ", ""),
        ("SOFTHSM2_CONF =", "\"A=B\" =", "no variable can have this name"),
    ] {
        let reasons = reasons(&GOOD.replace(find, replace));
        assert!(
            reasons.iter().any(|(_, reason)| reason.contains(expected)),
            "{expected}: {reasons:?}"
        );
    }
}

#[test]
fn what_a_token_is_accepted_with_is_named() {
    let with = |text: &str| GOOD.replace("pin_file = \"/d/pin\"", text);
    let token = |text: &str| Config::parse(&with(text), Path::new("f")).unwrap().hsm.token;
    let Token::Pkcs11 { pin, accept, .. } = token("pin_file = \"/d/pin\"") else {
        panic!("another kind")
    };
    assert_eq!((pin, accept.len()), (PinSource::File("/d/pin".into()), 0));
    let text = "protected_authentication = true\naccept = [\"kek-in-memory\"]";
    let Token::Pkcs11 { pin, accept, .. } = token(text) else { panic!("another kind") };
    assert_eq!((pin, accept), (PinSource::Protected, [Accept::KekInMemory].into()));
    for (text, expected) in [
        ("", "hsm.pin_file is missing"),
        ("protected_authentication = false", "hsm.pin_file is missing"),
        ("protected_authentication = 1", "must be true or false"),
        ("protected_authentication = true\npin_file = \"/p\"", "typed at the device"),
        ("pin_file = \"/p\"\naccept = []", "expected a list of one or more strings"),
        (
            "pin_file = \"/p\"\naccept = [\"all\"]",
            "\"all\" is nothing that can be accepted; there are unenforced-templates, kek-in-memory",
        ),
    ] {
        let reasons = reasons(&with(text));
        assert!(
            reasons.iter().any(|(_, reason)| reason.contains(expected)),
            "{expected}: {reasons:?}"
        );
    }
}

#[test]
fn backups_are_configured_whole_or_not_at_all() {
    let key = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let section = |rest: &str| format!("{GOOD}[backup]\ninterval = \"6h\"\n{rest}");
    let good = section(&format!("folder = \"/b\"\nrecipients = [\"{key}\"]\n"));
    let backup = Config::parse(&good, Path::new("f")).unwrap().backup.unwrap();
    assert_eq!((backup.interval, backup.keep), (Duration::from_hours(6), 7));
    assert_eq!(backup.recipients[0].to_string(), key);
    for (rest, expected) in [
        ("recipients = [\"{key}\"]\n", "backup.folder is missing"),
        ("folder = \"/b\"\n", "backup.recipients is missing"),
        ("folder = \"/b\"\nrecipients = []\n", "expected a list of one or more strings"),
        ("folder = \"/b\"\nrecipients = [1]\n", "expected a string, got integer"),
        ("folder = \"/b\"\nrecipients = [\"{key}x\"]\n", "its checksum does not match"),
        ("folder = \"/b\"\nkeep = 0\nrecipients = [\"{key}\"]\n", "must be 1 to 10000"),
    ] {
        let reasons = reasons(&section(&rest.replace("{key}", key)));
        assert!(
            reasons.iter().any(|(_, reason)| reason.contains(expected)),
            "{expected}: {reasons:?}"
        );
    }
}
