//! A SoftHSM 2 token of its own for each node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::plan::PlannedNode;

/// Where distributions put the module.
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

pub(super) fn module() -> Result<PathBuf, String> {
    MODULES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| {
        let places = MODULES.join(", ");
        format!("SoftHSM 2 is not installed (Debian: apt-get install softhsm2); not in {places}")
    })
}

pub(super) fn conf(node: &PlannedNode) -> PathBuf {
    node.dir.join("softhsm2.conf")
}

pub(super) fn tokens_dir(node: &PlannedNode) -> PathBuf {
    node.dir.join("tokens")
}

/// Makes the token and answers the keys of its `[hsm]` section.
pub(super) fn make_token(node: &PlannedNode, pin: &str) -> Result<String, String> {
    let (module, conf, tokens) = (module()?, conf(node), tokens_dir(node));
    fs::create_dir_all(&tokens).map_err(|error| error.to_string())?;
    let text = format!(
        "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
        tokens.display()
    );
    fs::write(&conf, text).map_err(|error| error.to_string())?;
    let so_pin = crypto::SecretBytes::random(12).map_err(|error| error.to_string())?;
    let so_pin = so_pin.expose(|bytes| hex::encode(bytes));
    let made = Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", &node.name, "--pin", pin, "--so-pin", &so_pin])
        .env("SOFTHSM2_CONF", &conf)
        .output()
        .map_err(|error| format!("softhsm2-util does not start: {error}"))?;
    if !made.status.success() {
        let why = String::from_utf8_lossy(&made.stderr);
        return Err(format!("softhsm2-util: {}", why.trim()));
    }
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let (module, conf) = (quoted(&module), quoted(&conf));
    let name = &node.name;
    Ok(format!(
        "kind = \"pkcs11\"\nmodule = {module}\ntoken_label = \"{name}\"\n\
         [hsm.environment]\nSOFTHSM2_CONF = {conf}\n"
    ))
}
