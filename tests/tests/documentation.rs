//! What the documentation tells people to type, typed: blocks of its pages marked `sh run`, in order, on a machine of
//! their own with the package installed. A block marked `text` behind one says what it prints; `…` stands for
//! anything, and alone in a line for any lines.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Machine, Topology, WebServer, Zone};
use serde_json::Value;

/// A block to be run.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    /// Where it begins.
    line: usize,
    script: String,
    prints: Option<String>,
}

/// The blocks of a page.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    // Whether nothing but empty lines came since the last block to be run.
    let mut is_behind = false;
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(kind) = line.trim_start().strip_prefix("```") else {
            is_behind &= line.trim().is_empty();
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let inside = lines.by_ref().map(|(_, line)| line.get(indent..).unwrap_or_default());
        let text: String = inside.take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect();
        match (kind.trim(), blocks.last_mut()) {
            ("sh run", _) => blocks.push(Block { line: number + 1, script: text, prints: None }),
            ("text", Some(block)) if is_behind => block.prints = Some(text),
            _ => {}
        }
        is_behind = kind.trim() == "sh run";
    }
    blocks
}

/// Whether `text` is what `pattern` says.
fn matches(pattern: &str, text: &str) -> bool {
    fn lines(pattern: &[&str], text: &[&str]) -> bool {
        match (pattern, text) {
            ([], text) => text.is_empty(),
            (["…", rest @ ..], text) => (0..=text.len()).any(|skipped| lines(rest, &text[skipped..])),
            ([first, rest @ ..], [line, more @ ..]) => line_matches(first, line) && lines(rest, more),
            (_, []) => false,
        }
    }
    lines(&pattern.lines().collect::<Vec<_>>(), &text.lines().map(str::trim_end).collect::<Vec<_>>())
}

fn line_matches(pattern: &str, line: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('…') else { return pattern == line };
    let Some(line) = line.strip_prefix(start) else { return false };
    line.char_indices().map(|(at, _)| at).chain([line.len()]).any(|at| line_matches(rest, &line[at..]))
}

#[test]
fn a_pattern_is_no_more_than_it_says() {
    for (pattern, text, wanted) in [
        ("a\nb\n", "a\nb\n", true),
        ("a\n", "a\nb\n", false),
        ("a …c\n", "a b c\n", true),
        ("a …c\n", "a b d\n", false),
        ("…\nb\n", "1\n2\nb\n", true),
        ("…\nb\n", "1\n2\n", false),
        ("…x…\n", "uxv\n", true),
    ] {
        assert_eq!(matches(pattern, text), wanted, "{pattern:?} {text:?}");
    }
    let page = "```sh run\nls\n```\n\n```text\nx\n```\n  ```sh run\n  ls\n  ```\nThen\n```text\ny\n```\n```sh\nrm\n```\n";
    let prints = [Some("x\n".to_owned()), None];
    let wanted = [1, 8].into_iter().zip(prints).map(|(line, prints)| Block {
        line,
        script: "ls\n".to_owned(),
        prints,
    });
    assert_eq!(blocks(page), wanted.collect::<Vec<_>>());
}

/// A host with the package, and an internet with what the pages speak of.
struct Stand {
    machine: Machine,
    _web: WebServer,
    _zone: Zone,
    topology: Topology,
}

impl Stand {
    fn new() -> Result<Self> {
        let topology = Topology::builder().owns("1.0.0.0/24".parse()?).build()?;
        let names: &[(&str, &[&str])] =
            &[("example.com", &["198.51.100.10"]), ("example.org", &["198.51.100.11"])];
        let zone = Zone::serve(topology.internet(), names)?;
        let web = WebServer::start(topology.internet(), 80)?;
        let machine = Machine::boot(&topology)?;
        fs::write(machine.path("/etc/resolv.conf"), "nameserver 8.8.8.8\n")?;
        machine.install(1)?;
        Ok(Self { machine, _web: web, _zone: zone, topology })
    }

    /// Runs the blocks of a page, with these shell functions in place of what the machine has not.
    fn run(&self, name: &str, functions: &str) -> Result<()> {
        let page = page(name)?;
        let blocks = blocks(&page);
        ensure!(!blocks.is_empty(), "{name} has nothing to run");
        for block in blocks {
            let said = self.say(&format!("sudo() {{ \"$@\"; }}\n{functions}\n{}", block.script))?;
            println!("{name}:{}\n{}{said}", block.line, block.script);
            if let Some(prints) = &block.prints {
                ensure!(
                    matches(prints, &said),
                    "{name}:{}: the page says\n{prints}\nand the commands\n{said}",
                    block.line
                );
            }
        }
        Ok(())
    }

    /// What a script prints, errors too; it must succeed.
    fn say(&self, script: &str) -> Result<String> {
        let script = format!("exec 2>&1\n{script}");
        let mut command = self.machine.command(&["bash", "-euo", "pipefail", "-c", &script]);
        let output = command.stdout(Stdio::piped()).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{script}\nended with {}:\n{said}", output.status);
        Ok(said)
    }
}

fn page(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

#[test]
fn the_tutorial_is_true() -> Result<()> {
    let stand = Stand::new()?;
    stand.run("tutorial.md", "")?;
    // It leaves the host as it was.
    assert_eq!(stand.topology.host().links()?.iter().filter(|link| link.starts_with("box")).count(), 0);
    Ok(())
}

#[test]
fn what_is_said_of_installing_is_true() -> Result<()> {
    let stand = Stand::new()?;
    stand.run("install.md", "")?;
    stand.run("api.md", "")
}

/// What `docker` says of the one container that there is: a namespace on a bridge.
const DOCKER: &str = r#"docker() {
    case "$*" in
        inspect*Pid*) cat /tmp/pid ;;
        inspect*IPAddress*) echo 172.17.0.2 ;;
        "exec web "*) shift 2; nsenter --target $(cat /tmp/pid) --net "$@" ;;
        *) return 1 ;;
    esac
}"#;
const CONTAINER: &str = r"
ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
ip link set docker0 up
ip netns add container
ip link add veth4c1e type veth peer name eth0 netns container
ip link set veth4c1e master docker0 up
ip -n container addr add 172.17.0.2/16 dev eth0
ip -n container link set eth0 up
ip -n container route add default via 172.17.0.1
nsenter --net=/run/netns/container sleep 600 > /dev/null 2>&1 &
echo $! > /tmp/pid
";

/// What `virsh` says of the one domain that there is: a tap on a bridge.
const VIRSH: &str = r#"virsh() {
    case "$1" in
        start)
            ip link add virbr0 type bridge
            ip tuntap add vnet0 mode tap
            ip link set vnet0 master virbr0 up
            ;;
        domiflist)
            echo ' Interface   Type      Source    Model    MAC'
            echo '-----------------------------------------------------------'
            echo ' vnet0       network   default   virtio   52:54:00:8a:5b:0c'
            echo
            ;;
        resume) ;;
        *) return 1 ;;
    esac
}"#;

#[test]
fn a_container_a_microvm_and_a_virtual_machine_are_filtered_as_described() -> Result<()> {
    let stand = Stand::new()?;
    stand.say(CONTAINER)?;
    stand.run("howto-docker.md", DOCKER)?;
    stand.say("sandbox-filter detach web")?;
    stand.run("howto-firecracker.md", "")?;
    stand.run("howto-libvirt.md", VIRSH)
}

#[test]
fn every_reason_is_explained() -> Result<()> {
    let topology = Topology::new()?;
    let sandbox = topology.sandbox(1)?;
    let daemon = filter_tests::Daemon::start_on(&topology)?;
    let show = daemon.attach("one", &sandbox, &Value::Object(Default::default()))?;
    let counters = show["counters"].as_object().context("no counters")?;
    let page = page("reasons.md")?;
    let rows: BTreeSet<_> =
        page.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0)).collect();
    assert_eq!(rows, counters.keys().map(String::as_str).collect());
    Ok(())
}
