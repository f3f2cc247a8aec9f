//! Tests of PKCS#11 modules run in a process of their own, with tokens of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

use super::support::{PIN, Result};

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
const SO_PIN: &str = "security officer";
const LABELS: [&str; 2] = ["one", "two"];

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Module {
    SoftHsm,
    /// `KRYOPTIC_MODULE`; `cargo xtask kryoptic` builds it.
    Kryoptic,
    /// SoftHSM behind the module that can be told to behave otherwise, with these quirks.
    Quirks(&'static str),
}

/// An ignored test of this binary, on every real module.
macro_rules! on_every_module {
    ($test:literal, $softhsm:ident, $kryoptic:ident) => {
        #[test]
        fn $softhsm() {
            $crate::child::run($crate::child::Module::SoftHsm, $test);
        }

        #[test]
        fn $kryoptic() {
            $crate::child::run($crate::child::Module::Kryoptic, $test);
        }
    };
}
pub(crate) use on_every_module;

/// Runs an ignored test of this binary in a process with two fresh tokens, `one` and `two`.
pub(crate) fn run(module: Module, test: &str) {
    let Some(path) = found(module) else { return };
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let softhsm2_conf = folder.path().join("softhsm2.conf");
    let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
    std::fs::write(&softhsm2_conf, text).unwrap();
    let kryoptic_conf = folder.path().join("kryoptic.conf");
    let slots = LABELS.iter().enumerate().map(|(slot, label)| {
        let file = tokens.join(format!("{label}.sql"));
        let file = file.display();
        format!("[[slots]]\nslot = {slot}\ndbtype = \"sqlite\"\ndbargs = \"{file}\"\n")
    });
    std::fs::write(&kryoptic_conf, slots.collect::<String>()).unwrap();
    let child = |test: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "--ignored", "--nocapture", test]);
        child.env("SOFTHSM2_CONF", &softhsm2_conf).env("KRYOPTIC_CONF", &kryoptic_conf);
        child.env("STRONGROOM_TEST_MODULE", &path).env("STRONGROOM_TEST_FOLDER", folder.path());
        child.env("QUIRKS", folder.path().join("quirks")).env("QUIRKS_PIN", PIN);
        child.env("QUIRKS_LOG", folder.path().join("quirks.log")).env("QUIRKS_MODULE", SOFTHSM);
        child
    };
    pass(&mut child("child::make_tokens"));
    if let Module::Quirks(quirks) = module {
        std::fs::write(folder.path().join("quirks"), quirks).unwrap();
    }
    pass(&mut child(test));
}

fn pass(child: &mut Command) {
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let cried = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{cried}");
    for line in said.lines().chain(cried.lines()).filter(|line| line.contains("FIGURE ")) {
        println!("{line}");
    }
}

fn found(module: Module) -> Option<PathBuf> {
    let untested = |what: &str| {
        eprintln!("\n*** NOT TESTED with {module:?}: {what} ***\n");
        None
    };
    match module {
        Module::Kryoptic => match std::env::var_os("KRYOPTIC_MODULE") {
            Some(path) => Some(path.into()),
            None => untested("KRYOPTIC_MODULE is not set; `cargo xtask kryoptic` builds it"),
        },
        _ if !Path::new(SOFTHSM).exists() => untested("SoftHSM 2 is not installed"),
        Module::SoftHsm => Some(SOFTHSM.into()),
        Module::Quirks(_) => Some(build_quirks()),
    }
}

/// Once for all tests; whoever comes second puts the same bytes in place.
fn build_quirks() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (module, fresh) = (folder.join("quirks.so"), tempfile::NamedTempFile::new_in(folder));
    let fresh = fresh.unwrap().into_temp_path();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/quirks/quirks.c");
    let built = Command::new("cc")
        .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
        .args([&*fresh, &source])
        .args(["-ldl", "-lpthread"])
        .output()
        .expect("there is a C compiler");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    fresh.persist(&module).unwrap();
    module
}

/// What follows is asked by the child.
pub(crate) fn module() -> PathBuf {
    std::env::var_os("STRONGROOM_TEST_MODULE").expect("set by the parent").into()
}

pub(crate) fn folder() -> PathBuf {
    std::env::var_os("STRONGROOM_TEST_FOLDER").expect("set by the parent").into()
}

pub(crate) fn quirk(quirks: &str) {
    // At once, because the module reads it at every call.
    let fresh = folder().join("quirks.fresh");
    std::fs::write(&fresh, quirks).expect("written");
    std::fs::rename(fresh, folder().join("quirks")).expect("renamed");
}

/// The codes of all logins since the last time this was asked.
pub(crate) fn logins() -> Vec<String> {
    let log = folder().join("quirks.log");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_file(log);
    text.lines().map(str::to_owned).collect()
}

/// A user's session with a token, past all slots. Whoever asked finalizes the library.
pub(crate) fn log_in(label: &str, pin: &AuthPin) -> Result<(Pkcs11, Session)> {
    let context = Pkcs11::new(module())?;
    context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let slots = context.get_slots_with_initialized_token()?;
    let is_it = |slot: &_| context.get_token_info(*slot).is_ok_and(|token| token.label() == label);
    let slot = slots.into_iter().find(is_it).expect("the token is there");
    let session = context.open_rw_session(slot)?;
    session.login(UserType::User, Some(pin))?;
    Ok((context, session))
}

/// What `softhsm2-util` and its like do, through PKCS#11.
#[test]
#[ignore = "runs in a child"]
fn make_tokens() -> Result {
    let context = Pkcs11::new(module())?;
    for label in LABELS {
        // SoftHSM shows another empty slot after each token that was made.
        context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        let slots = context.get_all_slots()?;
        let empty = slots.into_iter().find(|slot| {
            context.get_token_info(*slot).is_ok_and(|token| !token.token_initialized())
        });
        let slot = empty.expect("a slot without a token");
        let so_pin: AuthPin = SO_PIN.to_owned().into();
        context.init_token(slot, &so_pin, label)?;
        let session = context.open_rw_session(slot)?;
        session.login(UserType::So, Some(&so_pin))?;
        session.init_pin(&PIN.to_owned().into())?;
        drop(session);
        context.clone().finalize()?;
    }
    Ok(())
}
