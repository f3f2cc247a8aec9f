//! Whether, and how well, a token will serve: what `strongroom hsm probe` tells an operator.
//!
//! It logs in once and changes nothing that stays: keys that it makes are gone with its session. An
//! embedded token that is not there yet is not made.

use serde::Serialize;

use crate::{Accept, Info, OpenError, TokenConfig, embedded, pkcs11};

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub kind: &'static str,
    pub label: String,
    pub serial: String,
    pub model: String,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    pub verdict: Verdict,
    /// What was looked at, in a few words.
    pub what: &'static str,
    /// What was found.
    pub found: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Good,
    /// It serves, and it is less than it could be.
    Weak,
    /// With this it does not serve.
    Bad,
}

impl Report {
    /// The worst of what was found.
    pub fn verdict(&self) -> Verdict {
        self.findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Good)
    }
}

impl Finding {
    pub(crate) fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, what, found: found.into() }
    }

    pub(crate) fn weak(what: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Weak, what, found: found.into() }
    }

    pub(crate) fn bad(what: &'static str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, what, found: found.into() }
    }
}

/// Looks at the token as the node of this name would use it, with so many workers. Blocks.
pub fn probe(config: TokenConfig, node: &str, workers: usize) -> Result<Report, OpenError> {
    match config {
        TokenConfig::Embedded { path, pin } => {
            let weak = "the keys are protected by a PIN and a file, not by hardware";
            let mut findings = vec![Finding::weak("protection", weak)];
            if !path.exists() {
                let label = path.display().to_string();
                let found = "there is none yet: it is made at the first start";
                findings.push(Finding::good("file", found));
                let (serial, model) = (String::new(), String::new());
                return Ok(Report { kind: "embedded", label, serial, model, findings });
            }
            let token = embedded::Token::open(path, &pin)?;
            findings.extend(token.probe(node));
            Ok(report(crate::contract::Hsm::info(&token), findings))
        }
        TokenConfig::Pkcs11(mut config) => {
            // All is looked at; what was not accepted is told as a reason.
            let accepted = std::mem::replace(&mut config.accept, Accept::ALL.into());
            let token = pkcs11::Token::open(config)?;
            let mut findings = token.probe(node, workers);
            for (weakness, what) in token.weaknesses() {
                findings.push(if accepted.contains(&weakness) {
                    Finding::weak("accepted weakness", format!("{what} ({weakness})"))
                } else {
                    let hint = format!("hsm.accept = [\"{weakness}\"] would take it as it is");
                    Finding::bad("weakness", format!("{what}; {hint}"))
                });
            }
            let info = crate::contract::Hsm::info(&token);
            crate::contract::Hsm::close(&token);
            Ok(report(info, findings))
        }
    }
}

fn report(info: Info, findings: Vec<Finding>) -> Report {
    let Info { kind, label, serial, model, .. } = info;
    Report { kind, label, serial, model, findings }
}
