//! Takes a TOML document apart key by key and collects what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(super) struct Reader<'a> {
    text: &'a str,
    root: Spanned<DeTable<'a>>,
    reasons: Vec<(usize, String)>,
}

/// A table of the document, and which of its keys were asked for.
pub(super) struct Section<'a> {
    name: &'static str,
    line: usize,
    table: Option<DeTable<'a>>,
    asked: BTreeSet<&'static str>,
    skip_rest: bool,
}

impl Section<'_> {
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Asks for a key by whether it is there.
    pub(super) fn has(&mut self, key: &'static str) -> bool {
        self.asked.insert(key);
        self.table.as_ref().is_some_and(|table| table.get(key).is_some())
    }

    /// Keys that were not asked for are no mistake.
    pub(super) fn skip_rest(&mut self) {
        self.skip_rest = true;
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { format!("[{key}]") } else { format!("{}.{key}", self.name) }
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut reader = Self { text, root, reasons: Vec::new() };
        for error in errors {
            let line = error.span().map_or(0, |span| reader.line_of(span.start));
            reader.wrong(line, error.message());
        }
        reader
    }

    pub(super) fn root(&self) -> Section<'a> {
        let table = Some(self.root.get_ref().clone());
        Section { name: "", line: 1, table, asked: BTreeSet::new(), skip_rest: false }
    }

    pub(super) fn section(
        &mut self,
        root: &mut Section<'a>,
        name: &'static str,
        required: bool,
    ) -> Section<'a> {
        root.asked.insert(name);
        let mut section =
            Section { name, line: 0, table: None, asked: BTreeSet::new(), skip_rest: false };
        match root.table.as_ref().and_then(|table| table.get_key_value(name)) {
            Some((key, value)) => {
                section.line = self.line_of(key.span().start);
                match value.get_ref() {
                    DeValue::Table(table) => section.table = Some(table.clone()),
                    other => {
                        let found = other.type_str();
                        self.wrong(section.line, format!("{name}: expected a table, got {found}"));
                    }
                }
            }
            None if required => self.wrong(0, format!("the section [{name}] is missing")),
            None => {}
        }
        section
    }

    pub(super) fn required<T>(
        &mut self,
        section: &mut Section<'a>,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let missing = section.table.is_some() && !section.has(key);
        if missing {
            let path = section.path(key);
            self.wrong(section.line, format!("{path} is missing"));
        }
        self.optional(section, key, parse)
    }

    pub(super) fn defaulted<T>(
        &mut self,
        section: &mut Section<'a>,
        key: &'static str,
        default: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        let default =
            parse(default).unwrap_or_else(|why| unreachable!("the default is allowed, but {why}"));
        self.optional(section, key, parse).unwrap_or(default)
    }

    pub(super) fn optional<T>(
        &mut self,
        section: &mut Section<'a>,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        section.asked.insert(key);
        let value = section.table.as_ref()?.get(key)?;
        let line = self.line_of(value.span().start);
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.to_string(),
            other => {
                let (path, found) = (section.path(key), other.type_str());
                self.wrong(line, format!("{path}: expected a string, got {found}"));
                return None;
            }
        };
        match parse(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                let path = section.path(key);
                self.wrong(line, format!("{path} {why}"));
                None
            }
        }
    }

    /// `true` or `false`, the latter where it is left out.
    pub(super) fn flag(&mut self, section: &mut Section<'a>, key: &'static str) -> bool {
        section.asked.insert(key);
        let Some(value) = section.table.as_ref().and_then(|table| table.get(key)) else {
            return false;
        };
        if let DeValue::Boolean(flag) = value.get_ref() {
            return *flag;
        }
        let (line, path) = (self.line_of(value.span().start), section.path(key));
        self.wrong(line, format!("{path} must be true or false"));
        false
    }

    /// Strings, at least one of them.
    pub(super) fn list<T>(
        &mut self,
        section: &mut Section<'a>,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        section.asked.insert(key);
        let path = section.path(key);
        let Some(value) = section.table.as_ref()?.get(key) else {
            self.wrong(section.line, format!("{path} is missing"));
            return None;
        };
        let line = self.line_of(value.span().start);
        let entries = match value.get_ref() {
            DeValue::Array(entries) if !entries.is_empty() => entries,
            _ => {
                self.wrong(line, format!("{path}: expected a list of one or more strings"));
                return None;
            }
        };
        let (mut list, mut all) = (Vec::new(), true);
        for entry in entries {
            let parsed = match entry.get_ref() {
                DeValue::String(text) => parse(text),
                other => Err(format!("expected a string, got {}", other.type_str())),
            };
            match parsed {
                Ok(parsed) => list.push(parsed),
                Err(why) => {
                    self.wrong(self.line_of(entry.span().start), format!("{path}: {why}"));
                    all = false;
                }
            }
        }
        all.then_some(list)
    }

    /// A table of strings.
    pub(super) fn strings(
        &mut self,
        section: &mut Section<'a>,
        key: &'static str,
    ) -> BTreeMap<String, String> {
        section.asked.insert(key);
        let mut strings = BTreeMap::new();
        let Some(value) = section.table.as_ref().and_then(|table| table.get(key)) else {
            return strings;
        };
        let entries: Vec<_> = match value.get_ref() {
            DeValue::Table(table) => table.iter().collect(),
            other => {
                let (line, found) = (self.line_of(value.span().start), other.type_str());
                self.wrong(line, format!("{}: expected a table, got {found}", section.path(key)));
                return strings;
            }
        };
        for (name, value) in entries {
            match value.get_ref() {
                // The process could not be executed with it, or would do so for ever.
                DeValue::String(text)
                    if name.get_ref().is_empty()
                        || name.get_ref().contains(['=', '\0'])
                        || text.contains('\0') =>
                {
                    let (line, path) = (self.line_of(value.span().start), section.path(key));
                    self.wrong(line, format!("{path}: no variable can have this name and value"));
                }
                DeValue::String(text) => {
                    strings.insert(name.get_ref().to_string(), text.to_string());
                }
                other => {
                    let (line, found) = (self.line_of(value.span().start), other.type_str());
                    let path = section.path(key);
                    let name = name.get_ref();
                    self.wrong(line, format!("{path}.{name}: expected a string, got {found}"));
                }
            }
        }
        strings
    }

    /// Says which keys of a section nobody asked for.
    pub(super) fn finish(&mut self, section: Section<'a>) {
        let Some(table) = section.table else { return };
        if section.skip_rest {
            return;
        }
        let known: Vec<_> = section.asked.iter().copied().collect();
        for (key, _) in &table {
            if !section.asked.contains(key.get_ref().as_ref()) {
                let line = self.line_of(key.span().start);
                let key = key.get_ref();
                let place = if section.name.is_empty() {
                    String::new()
                } else {
                    format!("{}.", section.name)
                };
                let known = known.join(", ");
                self.wrong(line, format!("{place}{key} is unknown; known are {known}"));
            }
        }
    }

    pub(super) fn wrong(&mut self, line: usize, reason: impl Display) {
        self.reasons.push((line, reason.to_string()));
    }

    pub(super) fn reasons(mut self) -> Vec<(usize, String)> {
        self.reasons.sort();
        self.reasons.dedup();
        self.reasons
    }

    fn line_of(&self, offset: usize) -> usize {
        self.text[..offset.min(self.text.len())].matches('\n').count() + 1
    }
}
