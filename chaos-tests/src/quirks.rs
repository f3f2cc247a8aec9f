//! A PKCS#11 module between a node and its token, which can be told to misbehave: what it knows is in
//! `hsm/tests/quirks/quirks.c`, which the tests of that crate build as well.

use std::fs;
use std::path::{Path, PathBuf};

use crate::tools;

const SOURCE: &str = include_str!("../../hsm/tests/quirks/quirks.c");

/// The module of one node.
#[derive(Clone, Debug)]
pub struct Quirks {
    folder: PathBuf,
}

impl Quirks {
    /// Puts the module before the one that a configuration names. The node has to be started again.
    pub fn install(config: &Path) -> Self {
        let folder = config.parent().expect("it is in a folder").to_owned();
        let flags = ["-shared", "-fPIC", "-ldl", "-lpthread"];
        let module = tools::build(SOURCE, "quirks.so", &flags, &folder);
        let text = fs::read_to_string(config).expect("a configuration");
        let mut table: toml::Table = toml::from_str(&text).expect("good TOML");
        let hsm = table["hsm"].as_table_mut().expect("a section");
        let real = hsm.insert("module".into(), module.to_string_lossy().into_owned().into());
        let environment = hsm["environment"].as_table_mut().expect("a section");
        environment.insert("QUIRKS_MODULE".into(), real.expect("it names one"));
        for (name, file) in [("QUIRKS", "quirks"), ("QUIRKS_LOG", "quirks.log")] {
            let file = folder.join(file).to_string_lossy().into_owned();
            environment.insert(name.into(), file.into());
        }
        fs::write(config, toml::to_string(&table).expect("TOML")).expect("written");
        Self { folder }
    }

    /// The quirks that are in force from here on.
    pub fn set(&self, quirks: &str) {
        let fresh = self.folder.join("quirks.fresh");
        fs::write(&fresh, quirks).expect("written");
        fs::rename(fresh, self.folder.join("quirks")).expect("renamed");
    }

    /// The outcome of every login so far: `login` and the code.
    pub fn logins(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join("quirks.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}
