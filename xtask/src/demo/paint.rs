//! Text on the terminal: coloured for people, plain when piped or when `NO_COLOR` is set.

use anstyle::AnsiColor;

/// What a piece of text means.
#[derive(Clone, Copy)]
pub enum Style {
    Plain,
    Title,
    Good,
    Denied,
    Faint,
    Bad,
}

impl Style {
    fn ansi(self) -> anstyle::Style {
        let plain = anstyle::Style::new();
        match self {
            Self::Plain => plain,
            Self::Title => plain.bold(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Denied => AnsiColor::Yellow.on_default(),
            Self::Faint => plain.dimmed(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
        }
    }
}

/// The title of an act.
pub fn title(text: &str) {
    say(Style::Title, &format!("\n{text}"));
}

/// A line.
pub fn say(style: Style, text: &str) {
    line(&[(style, text.to_owned())]);
}

/// A line of several styles.
pub fn line(parts: &[(Style, String)]) {
    let text: String = parts
        .iter()
        .map(|(style, text)| {
            let ansi = style.ansi();
            format!("{ansi}{text}{ansi:#}")
        })
        .collect();
    anstream::println!("{text}");
}
