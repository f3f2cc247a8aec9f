//! `random`: random bytes of the leader.

use std::io::Write;

use clap::Args;

use crate::output::print;
use crate::{Failure, Format, Global};

#[derive(Args, Debug)]
pub struct Random {
    /// How many, 1 to 65536
    #[arg(default_value_t = 32)]
    bytes: u32,
    /// Print hexadecimal instead of base64
    #[arg(long, conflicts_with = "raw")]
    hex: bool,
    /// Write the bytes as they are
    #[arg(long)]
    raw: bool,
}

pub(crate) async fn run(random: Random, global: &Global) -> Result<(), Failure> {
    let answer = global.client()?.random(random.bytes).await?;
    if random.raw {
        let mut stdout = std::io::stdout().lock();
        return answer
            .random
            .expose(|bytes| stdout.write_all(bytes).and_then(|()| stdout.flush()))
            .map_err(Failure::local);
    }
    if random.hex && global.format == Format::Table {
        return print(&answer.random.expose(|bytes| hex::encode(bytes)));
    }
    global.show(&answer, |answer| answer.random.to_base64().to_string())
}
