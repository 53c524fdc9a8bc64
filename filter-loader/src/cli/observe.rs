//! `observe`: what happened and happens, a line each.

use std::{
    io::{self, Write},
    net::IpAddr,
    ops::ControlFlow,
    process::ExitCode,
};

use hyper::Method;

use super::{
    args::{DecisionArg, ObserveArgs},
    output::{Human, Printer, Style},
    table::printable,
};
use crate::{
    client::Client,
    error::ControlError,
    protocol::event::{Dropped, Event, Told},
};

/// Shows events until there are no more, or nobody looks any longer.
///
/// # Errors
/// When there is no daemon, or its answer breaks off.
pub fn observe(args: &ObserveArgs, client: &Client, printer: &Printer) -> Result<ExitCode, ControlError> {
    let mut lines = printer.lines();
    let mut shown = Ok(true);
    client.stream(Method::GET, &path(args), |told: Told| {
        // What is followed is to be seen at once; the rest goes out in pieces.
        shown = lines.print(&told).and_then(|more| if args.follow { lines.flush() } else { Ok(more) });
        if matches!(shown, Ok(true)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    shown?;
    lines.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn path(args: &ObserveArgs) -> String {
    let mut path = format!("/v1/events?follow={}", args.follow);
    if let Some(id) = &args.sandbox {
        path.push_str(&format!("&sandbox={id}"));
    }
    if let Some(decision) = args.decision {
        path.push_str(match decision {
            DecisionArg::Allow => "&decision=allow",
            DecisionArg::Deny => "&decision=deny",
        });
    }
    if let Some(since) = args.since {
        path.push_str(&format!("&since={}", humantime::format_duration(since)).replace(' ', ""));
    }
    path
}

impl Human for Told {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        match self {
            Self::Event(event) => event.human(out, style),
            Self::Dropped(dropped) => dropped.human(out, style),
        }
    }
}

impl Human for Event {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let happened = format!("{:<5}", printable(&self.event));
        let happened = match &*self.event {
            "deny" => style.bad(&happened),
            "open" => style.good(&happened),
            _ => style.dim(&happened),
        };
        let time = style.dim(&humantime::format_rfc3339_millis(self.ts).to_string());
        write!(out, "{time} {} {happened} {}", style.bold(self.sandbox.as_str()), printable(&self.reason))?;
        let (from, to) = (end(self.src, self.sport), end(self.dst, self.dport));
        write!(out, "  {} {from} -> {to}", printable(&self.proto))?;
        if let Some(name) = &self.server_name {
            write!(out, " ({})", printable(name))?;
        }
        if let Some(rule) = &self.rule {
            write!(out, "  rule {}", printable(rule))?;
        }
        if let Some(milliseconds) = self.duration_ms {
            let (sent, received) = (self.bytes_out, self.bytes_in);
            write!(out, "  {sent} B out, {received} B in, {milliseconds} ms")?;
        }
        write!(out, "  {}", style.dim(&format!("generation {}", self.generation)))?;
        match self.count {
            Some(count) if count > 1 => writeln!(out, "  {}", style.bold(&format!("x{count}"))),
            Some(_) | None => writeln!(out),
        }
    }
}

impl Human for Dropped {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let time = style.dim(&humantime::format_rfc3339_millis(self.ts).to_string());
        let whose = self.sandbox.as_ref().map_or_else(String::new, |id| format!(" of {id}"));
        let lost = format!("{} events{whose} are missing: they came too fast", self.dropped);
        writeln!(out, "{time} {}", style.warning(&lost))
    }
}

fn end(address: Option<IpAddr>, port: Option<u16>) -> String {
    match (address, port) {
        (Some(IpAddr::V6(address)), Some(port)) => format!("[{address}]:{port}"),
        (Some(address), Some(port)) => format!("{address}:{port}"),
        (Some(address), None) => address.to_string(),
        (None, _) => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn shown(told: &Told, style: Style) -> String {
        let mut out = Vec::new();
        told.human(&mut out, style).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn event() -> Event {
        Event {
            ts: UNIX_EPOCH + Duration::from_millis(1500),
            schema: 1,
            event: "deny".into(),
            sandbox: "vm1".parse().unwrap(),
            generation: 3,
            decision: "deny".into(),
            reason: "name_not_allowed".into(),
            rule: Some("/denyOut/0".to_owned()),
            proto: "tcp".into(),
            src: Some([10, 0, 0, 2].into()),
            sport: Some(40_000),
            dst: Some("2001:db8::7".parse().unwrap()),
            dport: Some(443),
            server_name: Some("a.test\u{1b}[2J".to_owned()),
            resolved_ip: None,
            bytes_out: 517,
            bytes_in: 0,
            duration_ms: None,
            count: Some(4),
        }
    }

    #[test]
    fn an_event_is_one_line_that_says_everything_and_commands_no_terminal() {
        assert_eq!(
            shown(&Told::Event(event()), Style::Plain),
            "1970-01-01T00:00:01.500Z vm1 deny  name_not_allowed  tcp 10.0.0.2:40000 -> [2001:db8::7]:443 \
             (a.test\u{fffd}[2J)  rule /denyOut/0  generation 3  x4\n"
        );
        let closed = Event {
            event: "close".into(),
            reason: "allowed_cidr".into(),
            server_name: None,
            duration_ms: Some(12),
            count: None,
            ..event()
        };
        let line = shown(&Told::Event(closed), Style::Coloured);
        assert!(line.contains("517 B out, 0 B in, 12 ms") && line.contains('\u{1b}'), "{line}");
    }

    #[test]
    fn what_is_missing_is_said() {
        let dropped = |sandbox| Told::Dropped(Dropped::now(sandbox, 7));
        assert!(
            shown(&dropped(Some("vm1".parse().unwrap())), Style::Plain)
                .ends_with(" 7 events of vm1 are missing: they came too fast\n")
        );
        assert!(shown(&dropped(None), Style::Plain).contains(" 7 events are missing"));
    }

    #[test]
    fn an_event_is_the_same_as_json_and_back() {
        for told in [Told::Event(event()), Told::Dropped(Dropped { ts: event().ts, ..Dropped::now(None, 1) })]
        {
            let text = serde_json::to_string(&told).unwrap();
            assert_eq!(serde_json::from_str::<Told>(&text).unwrap(), told, "{text}");
        }
    }
}
