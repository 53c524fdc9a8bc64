//! `top`: sandboxes at a glance, on a terminal that is drawn anew every second.

mod rates;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::{Duration, Instant},
};

use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Cell, Row, Table, TableState},
};

use self::rates::{Rates, Sample, Sandbox, Sort};
use crate::{client::Client, error::ControlError, protocol::Stats};

/// How often the numbers are asked for.
const INTERVAL: Duration = Duration::from_secs(1);

/// Shows what sandboxes do until `q`, Escape or Ctrl-C.
///
/// # Errors
/// When there is no terminal or no daemon.
pub fn top(client: &Client) -> Result<ExitCode, ControlError> {
    if !io::stdout().is_terminal() {
        return Err(ControlError::usage("`top` draws on a terminal; `stats --json` has the same numbers"));
    }
    // Whoever cannot be asked is not drawn.
    let mut screen = Screen::new(client.stats(None)?);
    let mut terminal = ratatui::try_init().map_err(|error| failed(&error))?;
    let shown = run(&mut terminal, &mut screen, client);
    ratatui::restore();
    shown.map(|()| ExitCode::SUCCESS)
}

fn failed(error: &io::Error) -> ControlError {
    ControlError::failed(format!("cannot draw on this terminal: {error}"))
}

fn run(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    client: &Client,
) -> Result<(), ControlError> {
    let mut asked = Instant::now();
    loop {
        terminal.draw(|frame| screen.draw(frame)).map_err(|error| failed(&error))?;
        if event::poll(INTERVAL.saturating_sub(asked.elapsed())).map_err(|error| failed(&error))?
            && let Event::Key(key) = event::read().map_err(|error| failed(&error))?
            && key.kind == KeyEventKind::Press
        {
            let is_interrupt =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if is_interrupt || screen.press(key.code) {
                return Ok(());
            }
        }
        if asked.elapsed() >= INTERVAL {
            asked = Instant::now();
            // A daemon that restarts is waited for, and that it is away is shown.
            screen.update(client.stats(None));
        }
    }
}

/// What is shown.
struct Screen {
    rates: Rates,
    sort: Sort,
    selected: TableState,
    /// Why the numbers are not new.
    trouble: Option<String>,
}

impl Screen {
    fn new(first: Stats) -> Self {
        let rates = Rates::new(Sample::now(first));
        Self { rates, sort: Sort::Denied, selected: TableState::default(), trouble: None }
    }

    fn update(&mut self, stats: Result<Stats, ControlError>) {
        match stats {
            Ok(stats) => {
                self.rates.add(Sample::now(stats));
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(error.message),
        }
    }

    /// `true`: enough.
    #[expect(clippy::wildcard_enum_match_arm, reason = "other keys do nothing")]
    fn press(&mut self, key: KeyCode) -> bool {
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Down | KeyCode::Char('j') => self.selected.select_next(),
            KeyCode::Up | KeyCode::Char('k') => self.selected.select_previous(),
            _ => {}
        }
        false
    }

    fn draw(&mut self, frame: &mut Frame) {
        let [head, table, foot] =
            Layout::vertical([Constraint::Length(2), Constraint::Min(3), Constraint::Length(1)])
                .areas(frame.area());
        self.draw_head(frame, head);
        self.draw_sandboxes(frame, table);
        let keys = match &self.trouble {
            Some(trouble) => Line::styled(trouble.clone(), Style::new().fg(Color::Red)),
            None => Line::from("q ends   s sorts   arrows scroll"),
        };
        frame.render_widget(keys, foot);
    }

    fn draw_head(&self, frame: &mut Frame, area: Rect) {
        let totals = self.rates.totals();
        let figures = format!(
            "{} sandboxes   {} connections   {}/s allowed   {}/s denied   {} events lost",
            totals.sandboxes,
            totals.active,
            short(totals.allowed),
            short(totals.denied),
            totals.events_lost,
        );
        let title = Span::styled("sandbox-filter  ", Style::new().add_modifier(Modifier::BOLD));
        let reasons = self.rates.reasons().map(|(reason, rate)| format!("{reason} {}/s", short(rate)));
        let reasons: Vec<_> = reasons.collect();
        let reasons = if reasons.is_empty() { "nothing is denied".to_owned() } else { reasons.join("   ") };
        frame.render_widget(
            ratatui::text::Text::from(vec![Line::from(vec![title, figures.into()]), reasons.into()]),
            area,
        );
    }

    fn draw_sandboxes(&mut self, frame: &mut Frame, area: Rect) {
        let header = Row::new(["ID", "CONNECTIONS", "", "REFUSED", "ALLOWED/s", "DENIED/s", "OUT AND IN/s"])
            .style(Style::new().add_modifier(Modifier::BOLD));
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(15),
            Constraint::Length(12),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Length(10),
            Constraint::Length(13),
        ];
        let rows = self.rates.sandboxes(self.sort).into_iter().map(row);
        let title = format!(" by {} ", self.sort.name());
        let table = Table::new(rows, widths)
            .header(header)
            .block(Block::bordered().title(title))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, area, &mut self.selected);
    }
}

fn row(sandbox: Sandbox) -> Row<'static> {
    let Sandbox { id, active, limit, refused, allowed, denied, bytes } = sandbox;
    let share = if limit == 0 { 0.0 } else { f64::from(active) / f64::from(limit) };
    let colour = if share >= 0.9 {
        Color::Red
    } else if share >= 0.7 {
        Color::Yellow
    } else {
        Color::Green
    };
    let denials = if denied > 0.0 { Style::new().fg(Color::Red) } else { Style::new() };
    Row::new([
        Cell::from(id),
        Cell::from(format!("{active}/{limit}")),
        Cell::from(bar(share)).style(Style::new().fg(colour)),
        Cell::from(refused.to_string()),
        Cell::from(short(allowed)),
        Cell::from(short(denied)).style(denials),
        Cell::from(format!("{}B", short(bytes))),
    ])
}

/// A part of ten, as a bar.
fn bar(share: f64) -> String {
    const WIDTH: usize = 10;
    // Between 0 and 10, whatever the share.
    let filled = (share.clamp(0.0, 1.0) * WIDTH as f64).ceil() as usize;
    format!("{}{}", "#".repeat(filled), ".".repeat(WIDTH - filled))
}

/// A number in few letters.
fn short(number: f64) -> String {
    for (size, letter) in [(1e9, 'G'), (1e6, 'M'), (1e3, 'k')] {
        if number >= size {
            return format!("{:.1}{letter}", number / size);
        }
    }
    format!("{number:.0}")
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::protocol::{Connections, Counter, SandboxStats, counters};

    fn stats(denied: u64) -> Stats {
        let one = |id: &str, active, denied| SandboxStats {
            id: id.parse().unwrap(),
            connections: Connections { active, limit: 10, peak: active, refused: 3 },
            counters: counters(|reason| {
                let packets = if reason.name() == "denied_cidr" { denied } else { 0 };
                Counter { packets, bytes: packets * 60 }
            }),
        };
        Stats::new(vec![one("quiet", 1, 0), one("loud", 9, denied)], 7)
    }

    fn drawn(screen: &mut Screen) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, 10)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_has_sandboxes_limits_and_what_is_denied() {
        let mut screen = Screen::new(stats(0));
        assert!(drawn(&mut screen).contains("nothing is denied"));
        std::thread::sleep(Duration::from_millis(20));
        screen.update(Ok(stats(1_000_000)));
        let shown = drawn(&mut screen);
        for part in [
            "2 sandboxes",
            "10 connections",
            "7 events lost",
            "denied_cidr",
            "9/10",
            "#########.",
            "by denied",
        ] {
            assert!(shown.contains(part), "{part}:\n{shown}");
        }
        let place = |id| shown.find(id).unwrap();
        assert!(place("loud") < place("quiet"), "who is denied most comes first:\n{shown}");
        assert!(!screen.press(KeyCode::Char('s')) && screen.press(KeyCode::Char('q')));
        screen.update(Err(ControlError::unreachable("the daemon is away")));
        assert!(drawn(&mut screen).contains("the daemon is away"));
    }

    #[test]
    fn numbers_and_bars_keep_their_width() {
        assert_eq!([0.0, 999.0, 1500.0, 2e6, 3e9].map(short), ["0", "999", "1.5k", "2.0M", "3.0G"]);
        assert_eq!([0.0, 0.05, 1.0, 7.0].map(|share| bar(share).len()), [10; 4]);
    }
}
