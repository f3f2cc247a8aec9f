//! Programs that are not part of the Rust toolchain, found or installed.
//!
//! What can be kept apart from the machine goes into a cache folder of ours and is pinned to a
//! version. Only the software HSM is installed from the system's packages, because PKCS#11 modules
//! are libraries that belong to the system.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shell::{Failure, Outcome, cargo, on_path, program, read, root, run};

const CARGO_DENY_VERSION: &str = "0.20.2";
/// As xtask/kryoptic/Cargo.toml pins it.
const KRYOPTIC_VERSION: &str = "1.5.4";
/// What bindgen needs, which OpenSSL's bindings are made with.
const LIBCLANG: &str = "libclang==18.1.1";

/// `$XDG_CACHE_HOME/strongroom`, or `~/.cache/strongroom`.
fn cache() -> Outcome<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = match (set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => Path::new(&home).join(".cache"),
        (None, None) => return Err(Failure("neither XDG_CACHE_HOME nor HOME is set".into())),
    };
    let folder = base.join("strongroom");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The pinned cargo-deny; built from source the first time, which takes some minutes.
pub(crate) fn cargo_deny() -> Outcome<PathBuf> {
    let home = cache()?.join("tools").join(format!("cargo-deny-{CARGO_DENY_VERSION}"));
    let deny = home.join("bin/cargo-deny");
    if !deny.is_file() {
        println!("Installing cargo-deny {CARGO_DENY_VERSION} into {}", home.display());
        let version = format!("={CARGO_DENY_VERSION}");
        let mut install = cargo(&["install", "--locked", "cargo-deny", "--version", &version]);
        // Its own build folder, which cargo removes: it shares nothing with ours.
        run(install.arg("--root").arg(&home).env_remove("CARGO_TARGET_DIR"))?;
    }
    Ok(deny)
}

/// Kryoptic, the second software token that the tests know, as a PKCS#11 module; built from source the
/// first time, with OpenSSL, which takes some ten minutes.
pub(crate) fn kryoptic() -> Outcome<PathBuf> {
    let module = kryoptic_place()?;
    if module.is_file() {
        return Ok(module);
    }
    let home = module.parent().expect("it is in a folder").to_owned();
    println!("Building Kryoptic {KRYOPTIC_VERSION} into {}", home.display());
    fs::create_dir_all(&home)?;
    let venv = home.join("venv");
    let python = make_venv(&venv, &[LIBCLANG])?;
    let libclang = "import clang, os; print(os.path.join(list(clang.__path__)[0], 'native'))";
    let libclang = read(&mut program(python, &["-c", libclang]))?;
    // libclang comes without the headers that belong to a compiler.
    let headers = read(&mut program("cc", &["-print-file-name=include"]))?;
    let manifest = root().join("xtask/kryoptic/Cargo.toml");
    let target = home.join("target");
    let mut build = cargo(&["build", "--release", "--locked", "--manifest-path"]);
    build.arg(manifest).env("CARGO_TARGET_DIR", &target).env("LIBCLANG_PATH", libclang);
    run(build.env("BINDGEN_EXTRA_CLANG_ARGS", format!("-I{headers}")))?;
    fs::copy(target.join("release/libstrongroom_kryoptic.so"), &module)?;
    fs::remove_dir_all(target)?;
    fs::remove_dir_all(venv)?;
    Ok(module)
}

/// The module, if it was built.
pub(crate) fn kryoptic_if_built() -> Outcome<Option<PathBuf>> {
    Ok(Some(kryoptic_place()?).filter(|module| module.is_file()))
}

fn kryoptic_place() -> Outcome<PathBuf> {
    let home = cache()?.join("tools").join(format!("kryoptic-{KRYOPTIC_VERSION}"));
    Ok(home.join("libstrongroom_kryoptic.so"))
}

/// The Python of a virtual environment that holds exactly `helm/requirements.txt`.
pub(crate) fn python() -> Outcome<PathBuf> {
    let home = cache()?.join("venv");
    let python = home.join("bin/python");
    let wanted = fs::read_to_string(root().join("helm/requirements.txt"))?;
    let installed = home.join("requirements.txt");
    if fs::read_to_string(&installed).ok().as_deref() != Some(&wanted) {
        println!("Installing the packages of helm/requirements.txt into {}", home.display());
        make_venv(&home, &["-r", "helm/requirements.txt"])?;
        fs::write(&installed, wanted)?;
    }
    Ok(python)
}

/// A virtual environment with these packages; gives its Python.
fn make_venv(home: &Path, packages: &[&str]) -> Outcome<PathBuf> {
    let mut make = program("python3", &["-m", "venv", "--clear"]);
    run(make.arg(home)).map_err(|Failure(why)| {
        Failure(format!("{why}\nPython 3 with venv is needed (Debian: python3-venv)"))
    })?;
    let python = home.join("bin/python");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(program(&python, &pip).args(packages))?;
    Ok(python)
}

/// etcd as the system's packages have it, which a proof compares with. Where it is not installed
/// its package is only unpacked, so that no service of that name is started on this machine.
pub(crate) fn etcd() -> Outcome<PathBuf> {
    if on_path("etcd") {
        return Ok("etcd".into());
    }
    let home = cache()?.join("etcd");
    let etcd = home.join("unpacked/usr/bin/etcd");
    if !etcd.is_file() {
        println!("Unpacking etcd-server into {}", home.display());
        let by_hand = |Failure(why): Failure| {
            Failure(format!("{why}\nInstall etcd (Debian and Ubuntu: etcd-server) and try again"))
        };
        if home.exists() {
            fs::remove_dir_all(&home)?;
        }
        fs::create_dir_all(&home)?;
        let mut download = program("apt-get", &["download", "-q", "etcd-server"]);
        run(download.current_dir(&home)).map_err(by_hand)?;
        let package = fs::read_dir(&home)?.next().transpose()?;
        let package = package.ok_or_else(|| Failure("apt-get downloaded nothing".into()))?.path();
        let mut unpack = program("dpkg-deb", &["--extract"]);
        run(unpack.arg(package).arg(home.join("unpacked"))).map_err(by_hand)?;
    }
    Ok(etcd)
}

/// `SoftHSM` 2, which the PKCS#11 tests run against.
pub(crate) fn softhsm() -> Outcome {
    if on_path("softhsm2-util") {
        return Ok(());
    }
    let by_hand = "SoftHSM 2 is needed by the tests and is not installed. \
                   Install it (Debian and Ubuntu: `apt-get install softhsm2`) and try again";
    if !on_path("apt-get") {
        return Err(Failure(by_hand.into()));
    }
    let is_root = fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status.lines().any(|line| line.split_whitespace().take(3).eq(["Uid:", "0", "0"]))
    });
    let apt = |arguments: &[&str]| {
        let mut command = if is_root {
            program("apt-get", arguments)
        } else {
            let mut sudo = program("sudo", &["-n", "apt-get"]);
            sudo.args(arguments);
            sudo
        };
        run(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if !is_root && !on_path("sudo") {
        return Err(Failure(by_hand.into()));
    }
    println!("Installing softhsm2 with apt-get");
    apt(&["update", "-q"])
        .and_then(|()| apt(&["install", "-q", "-y", "--no-install-recommends", "softhsm2"]))
        .map_err(|Failure(why)| Failure(format!("{why}\n{by_hand}")))
}
