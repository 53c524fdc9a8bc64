//! Nanoseconds a packet: `cargo bench -p filter-loader --bench packets [-- part of a name]`.
//!
//! Runs the rows of the tests' own table that leave everything as it was, a million times each, in the kernel
//! (`BPF_PROG_TEST_RUN` with `repeat`). What opens or refuses changes the connections or the frame, so it is
//! run once a call and averaged, which costs some tens of nanoseconds more: compare these with each other
//! only. The first line is what running an empty program costs; it is part of all other numbers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench that cannot run stops")]

#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

use std::net::SocketAddr;
use std::time::Duration;

use filter_common::Reason;
use fixtures::frames::{Extras, Family, Frame, PORT, SYN, here, other_with, ping, tcp, udp};
use fixtures::machine::{Direction, MARK, Machine, Tenant};
use fixtures::policies::Document;
use fixtures::table::{Fixture, all, prepare};

const REPEAT: u32 = 1_000_000;
const ROUNDS: usize = 3;

fn main() {
    // Cargo passes `--bench`; what does not begin with a dash is part of a name.
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut machine = Machine::new();
    println!("{:>8}  fixture, best of {ROUNDS} times {REPEAT}", "ns");
    for fixture in rows().iter().filter(|fixture| fixture.name.contains(&wanted)) {
        prepare(&mut machine, fixture);
        machine.used = true;
        let best = (0..ROUNDS).map(|_| repeated(&machine, fixture)).min().unwrap();
        report(best, &fixture.name);
    }
    println!("\n{:>8}  fixture, mean of {SINGLE} single runs, best of {ROUNDS}", "ns");
    for (name, document, frame) in singles() {
        if name.contains(&wanted) {
            let best = (0..ROUNDS).map(|_| one_by_one(&mut machine, document, &frame)).min().unwrap();
            report(best, &name);
        }
    }
}

fn report(duration: Duration, name: &str) {
    println!("{:>8}  {name}", duration.as_nanos());
}

/// The rows of the table that are marked for it, the cheapest of all first, and one that the table has no
/// reason for.
fn rows() -> Vec<Fixture> {
    let empty = |fixture: &Fixture| fixture.mark == MARK && fixture.direction.is_out();
    let mut rows: Vec<Fixture> = all().into_iter().filter(|fixture| fixture.bench).collect();
    rows.sort_by_key(|fixture| !empty(fixture));
    for family in Family::BOTH {
        let (own, far) = (family.sandbox(), family.named());
        let frame = other_with(own, far, 17, &[0; 1200], &Extras::fragment(family, 185, true));
        let name = format!("{family:?}, later fragment, allowed");
        rows.push(Fixture::pass(name, Direction::Out, frame, Reason::AllowedCidr).under(Document::Listed));
    }
    rows
}

fn repeated(machine: &Machine, fixture: &Fixture) -> Duration {
    let ran = machine.repeat_in(fixture.direction, &fixture.frame.bytes, &fixture.context(), REPEAT);
    assert_eq!(
        ran.frame, fixture.frame.bytes,
        "{} changes its frame, so it cannot be repeated",
        fixture.name
    );
    ran.duration
}

const SINGLE: u16 = 2000;

/// A frame for each number.
type Make = Box<dyn Fn(u16) -> Frame>;

fn singles() -> Vec<(String, Document, Make)> {
    let mut table: Vec<(String, Document, Make)> = Vec::new();
    for family in Family::BOTH {
        let far = move |port| SocketAddr::new(family.named(), port);
        let own = move |port| SocketAddr::new(family.sandbox(), port);
        let known = tcp(here(family), SocketAddr::new(family.named(), PORT), SYN, b"");
        let mut add =
            |name: &str, document, make: Make| table.push((format!("{family:?}, {name}"), document, make));
        add("a SYN sent again, to compare with", Document::Listed, Box::new(move |_| known.clone()));
        add(
            "new TCP connection",
            Document::Listed,
            Box::new(move |number| tcp(own(10_000 + number), far(443), SYN, b"")),
        );
        add(
            "new UDP exchange",
            Document::Listed,
            Box::new(move |number| udp(own(10_000 + number), far(443), b"x")),
        );
        add(
            "new echo exchange",
            Document::Listed,
            Box::new(move |number| ping(own(0).ip(), far(0).ip(), number)),
        );
        add(
            "denied TCP, with reset",
            Document::Denied,
            Box::new(move |_| tcp(here(family), far(443), SYN, b"")),
        );
        add("denied UDP, with ICMP", Document::Denied, Box::new(move |_| udp(here(family), far(443), b"x")));
    }
    table
}

fn one_by_one(machine: &mut Machine, document: Document, make: &Make) -> Duration {
    machine.enter(&Tenant::ORDINARY, document);
    machine.used = true;
    let frames: Vec<Frame> = (0..SINGLE).map(make).collect();
    let total: Duration = frames.iter().map(|frame| machine.run(Direction::Out, &frame.bytes).duration).sum();
    total / u32::from(SINGLE)
}
