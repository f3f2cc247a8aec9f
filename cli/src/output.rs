//! Answers on stdout, as JSON or as a table; notices and questions on stderr.

use std::io::{self, BufRead, IsTerminal, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::{Failure, Format, Global};

impl Global {
    /// Prints an answer: the JSON of the API, or what `table` makes of it.
    pub fn show<T: Serialize>(
        &self,
        answer: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(answer).map_err(Failure::local)?,
            Format::Table => table(answer),
        };
        print(&text)
    }
}

/// Writes an answer. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::local(error)),
        _ => Ok(()),
    }
}

/// Rows under a header.
pub(crate) fn rows<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = plain();
    table.set_header(header);
    table.add_rows(rows);
    left(table)
}

/// One fact a line.
pub fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = plain();
    table.add_rows(facts.into_iter().map(|(name, value)| [name.to_owned(), value]));
    left(table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Prints from the first column on.
fn left(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// What is absent.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Asks a person for a yes; where none can be asked, `--yes` has to say it.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::local("nobody can be asked here: add --yes"));
    }
    eprint!("{question} Type yes: ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(Failure::local)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::local("not confirmed")) }
}
