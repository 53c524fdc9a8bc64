//! Printing: every result is a document for programs and a table for people.

use std::{
    env,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use serde::Serialize;

use super::table::printable;
use crate::{error::ControlError, protocol::SandboxId};

/// More problems than anybody reads on a terminal; JSON has all.
const MAX_PROBLEMS: usize = 20;

/// How a result looks to people.
pub trait Human {
    /// Writes it.
    ///
    /// # Errors
    /// Those of the writer.
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()>;
}

/// What a terminal can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// Text alone.
    Plain,
    /// Colours and weights.
    Coloured,
}

impl Style {
    /// Colours on a terminal, unless <https://no-color.org> or `TERM=dumb` asks for none.
    fn of(stream: &impl IsTerminal) -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|term| term == "dumb");
        if stream.is_terminal() && !refused { Self::Coloured } else { Self::Plain }
    }

    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What is right.
    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// What deserves a look.
    pub fn warning(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// What is wrong.
    pub fn bad(self, text: &str) -> String {
        self.wrap("31", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Coloured => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        }
    }
}

/// Prints results and errors the way that the command line asks for.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    json: bool,
}

impl Printer {
    /// Prints JSON, or for people.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints the result of a command that did what it was asked.
    ///
    /// # Errors
    /// When standard output does not take it.
    pub fn print<T: Serialize + Human + ?Sized>(&self, result: &T) -> Result<ExitCode, ControlError> {
        let stdout = io::stdout();
        let style = Style::of(&stdout);
        let mut out = io::BufWriter::new(stdout.lock());
        let written = if self.json { document(&mut out, result) } else { result.human(&mut out, style) };
        finished(written.and_then(|()| out.flush()))
    }

    /// Prints what has one form only.
    ///
    /// # Errors
    /// When standard output does not take it.
    pub fn raw(&self, text: &[u8]) -> Result<ExitCode, ControlError> {
        let mut out = io::stdout().lock();
        finished(out.write_all(text).and_then(|()| out.flush()))
    }

    /// Prints an error, as JSON to where the result would have gone; the exit code is its own.
    pub fn error(&self, error: &ControlError) -> ExitCode {
        // A failure to say what failed can be told to nobody.
        let _ = if self.json {
            document(&mut io::stdout().lock(), &ErrorDocument { error })
        } else {
            let stderr = io::stderr();
            let style = Style::of(&stderr);
            explain(&mut stderr.lock(), style, error)
        };
        ExitCode::from(error.code.exit_code())
    }
}

#[derive(Serialize)]
struct ErrorDocument<'a> {
    error: &'a ControlError,
}

fn document<T: Serialize + ?Sized>(out: &mut impl Write, result: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *out, result)?;
    writeln!(out)
}

fn finished(written: io::Result<()>) -> Result<ExitCode, ControlError> {
    match written {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // Whoever read it, `head` perhaps, has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(ControlError::failed(format!("cannot write to standard output: {error}"))),
    }
}

/// The first line says all there is to say, unless a policy has several problems.
fn explain(out: &mut dyn Write, style: Style, error: &ControlError) -> io::Result<()> {
    writeln!(out, "{} {}", style.bad("error:"), printable(&error.to_string()))?;
    for problem in error.problems.iter().skip(1).take(MAX_PROBLEMS) {
        writeln!(out, "       {}", printable(&problem.to_string()))?;
    }
    match error.problems.len().saturating_sub(MAX_PROBLEMS + 1) {
        0 => Ok(()),
        more => writeln!(out, "       and {more} more; --json names all"),
    }
}

/// The result of `detach`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Detached {
    /// Of which sandbox.
    pub id: SandboxId,
    /// `true`
    pub detached: bool,
}

/// The result of `rotate-tokens`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Rotated {
    /// `true`
    pub rotated: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Problem;

    #[test]
    fn errors_are_one_line_and_further_problems_one_each() {
        let shown = |error: &ControlError| {
            let mut out = Vec::new();
            explain(&mut out, Style::Plain, error).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(&ControlError::failed("no\nsuch thing")), "error: no\u{fffd}such thing\n");
        let problem = |n: usize| Problem {
            code: "x".to_owned(),
            message: "bad".to_owned(),
            pointer: format!("/denyOut/{n}"),
        };
        let two = ControlError::invalid_policy((0..2).map(problem).collect());
        assert_eq!(shown(&two), "error: /denyOut/0: bad\n       /denyOut/1: bad\n");
        let many = ControlError::invalid_policy((0..30).map(problem).collect());
        assert_eq!(shown(&many).lines().count(), MAX_PROBLEMS + 2);
        assert!(shown(&many).ends_with("and 9 more; --json names all\n"));
    }
}
