//! The Debian package on a machine of its own with systemd: installed, watched over, upgraded and removed.

mod support_b;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Api, Machine, Sandbox, Service, Topology, WebServer, Zone};
use serde_json::{Value, json};

use support_b::{A, B, PATIENCE, Probes, eventually, packets, programs_on, reaches, tool};

const UNIT: &str = "sandbox-filter.service";
/// What is not on the list of system calls ends the daemon, rather than failing in silence.
const LOUD: &str = "[Service]\nSystemCallErrorNumber=kill\n";
/// What a restart may take on a machine that is busy.
const LONG: Duration = Duration::from_secs(30);

/// A machine, and a sandbox on the host that it is.
struct Stand {
    machine: Machine,
    sandbox: Sandbox,
    topology: Topology,
}

impl Stand {
    /// Without the package.
    fn bare() -> Result<Self> {
        let topology = Topology::new()?;
        let sandbox = topology.sandbox(1)?;
        Ok(Self { machine: Machine::boot(&topology)?, sandbox, topology })
    }

    /// With the package and its service.
    fn installed() -> Result<Self> {
        let stand = Self::bare()?;
        stand.machine.install(1)?;
        Ok(stand)
    }

    /// Puts the sandbox under a policy that allows `allowed` and nothing else.
    fn attach(&self, allowed: &str) -> Result<()> {
        let (v4, v6) = (self.sandbox.v4().to_string(), self.sandbox.v6().to_string());
        let iface = self.sandbox.host_interface();
        let args = ["attach", "one", "--iface", iface, "--addr", &v4, "--addr", &v6];
        self.cli(&[&args[..], &["--allow-out", allowed, "--deny-out", "0.0.0.0/0"]].concat()).map(drop)
    }

    fn cli(&self, args: &[&str]) -> Result<String> {
        self.machine.must(&[&["sandbox-filter"], args].concat())
    }

    fn show(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.cli(&["show", "one", "--json"])?)?)
    }

    fn api(&self) -> Api {
        Api::on(self.machine.path("/run/sandbox-filter/control.sock"))
    }

    /// A property of the service.
    fn property(&self, name: &str) -> Result<String> {
        let said = self.machine.must(&["systemctl", "show", "--value", "--property", name, UNIT])?;
        Ok(said.trim().to_owned())
    }

    /// Adds to the service's unit.
    fn drop_in(&self, name: &str, text: &str) -> Result<()> {
        let directory = self.machine.path(&format!("/etc/systemd/system/{UNIT}.d"));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(name), text)?;
        self.machine.must(&["systemctl", "daemon-reload"])?;
        self.machine.must(&["systemctl", "restart", UNIT]).map(drop)
    }

    /// Changes the configuration and has it read.
    fn configure(&self, changes: &[(&str, &str)]) -> Result<()> {
        let path = self.machine.path("/etc/sandbox-filter/config.toml");
        let mut config = fs::read_to_string(&path)?;
        for (from, to) in changes {
            ensure!(config.contains(from), "no {from} in the packaged configuration");
            config = config.replace(from, to);
        }
        fs::write(&path, config)?;
        self.machine.must(&["systemctl", "restart", UNIT]).map(drop)
    }

    /// What there is of the filter on the machine and its network, beside what the package itself has.
    fn traces(&self) -> Result<BTreeSet<String>> {
        let host = self.topology.host();
        let mut traces = BTreeSet::new();
        for args in [&["rule"][..], &["-6", "rule"], &["route", "show", "table", "all"], &["-br", "link"]] {
            traces.extend(tool(host, "ip", args)?.lines().map(str::to_owned));
        }
        let paths = "/sys/fs/bpf/* /run/sandbox-filter /run/netns/* /etc/netns/* /var/lib/sandbox-filter";
        // It says of which there is none on standard error.
        let found = self.machine.run(&["sh", "-c", &format!("ls -d {paths}")])?.stdout;
        traces.extend(found.lines().map(str::to_owned));
        traces.insert(format!("{} programs", programs_on(host, self.sandbox.host_interface())?));
        Ok(traces)
    }
}

#[test]
fn the_service_has_what_it_needs_and_no_more() -> Result<()> {
    let stand = Stand::installed()?;
    let machine = &stand.machine;
    assert_eq!(stand.property("ActiveState")?, "active");
    assert_eq!(stand.property("StatusText")?, "0 sandboxes");
    assert_eq!(machine.must(&["systemctl", "is-enabled", UNIT])?.trim(), "enabled");
    let unit = format!("/usr/lib/systemd/system/{UNIT}");
    let said = machine.run(&["systemd-analyze", "verify", &unit])?;
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    println!("{}", machine.must(&["systemd-analyze", "security", "--no-pager", UNIT])?);

    let process = machine.must(&["cat", &format!("/proc/{}/status", stand.property("MainPID")?)])?;
    let field = |name: &str| {
        process.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).unwrap_or_default()
    };
    // NET_BIND_SERVICE, NET_ADMIN, NET_RAW, SYS_ADMIN, PERFMON, BPF (linux/capability.h).
    let capabilities = [10, 12, 13, 21, 38, 39].iter().fold(0_u64, |all, bit| all | 1 << bit);
    for set in ["CapBnd", "CapEff"] {
        assert_eq!(u64::from_str_radix(field(set), 16)?, capabilities, "{set}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1", "2"));

    let files = machine.must(&["dpkg", "--listfiles", "sandbox-filter"])?;
    for file in [
        "/usr/share/man/man1/sandbox-filter.1.gz",
        "/usr/share/man/man1/sandbox-filter-attach.1.gz",
        "/usr/share/bash-completion/completions/sandbox-filter",
        "/usr/share/zsh/vendor-completions/_sandbox-filter",
        "/usr/share/fish/vendor_completions.d/sandbox-filter.fish",
        "/usr/share/doc/sandbox-filter/copyright",
        "/usr/share/doc/sandbox-filter/changelog.gz",
        "/usr/share/doc/sandbox-filter/install.md",
    ] {
        assert!(files.lines().any(|line| line == file), "{file} is not in the package:\n{files}");
    }
    let conffiles = machine.must(&["dpkg-query", "--show", "--showformat=${Conffiles}", "sandbox-filter"])?;
    assert_eq!(conffiles.split_whitespace().next(), Some("/etc/sandbox-filter/config.toml"));
    stand.cli(&["doctor"]).map(drop)
}

#[test]
fn everything_works_within_the_bounds_of_the_service() -> Result<()> {
    let stand = Stand::installed()?;
    stand.drop_in("loud.conf", LOUD)?;
    stand.configure(&[("upstream = []", "upstream = [\"8.8.8.8:53\"]")])?;
    let internet = stand.topology.internet();
    let _zone = Zone::serve(internet, &[("allowed.test", &["198.51.100.10"])])?;
    let _web = WebServer::start(internet, 80)?;
    let _echo = stand.topology.serve(Service::TcpEcho, 7)?;
    stand.attach("203.0.113.0/24,allowed.test")?;
    let usual = || -> Result<()> {
        assert!(reaches(&stand.sandbox, (A, 7))? && !reaches(&stand.sandbox, (B, 7))?);
        let ask = |name: &str| stand.sandbox.http_get((B, 80), name, PATIENCE).result;
        assert_eq!(ask("allowed.test")?.status, 200);
        assert_eq!(ask("other.test")?.status, 403);
        Ok(())
    };
    usual()?;

    // Where nothing is made it can be bound more closely.
    let strict = stand.machine.path("/usr/share/doc/sandbox-filter/examples/strict.conf");
    stand.drop_in("strict.conf", &fs::read_to_string(strict)?)?;
    usual()?;
    stand.cli(&["detach", "one"])?;
    stand.attach("203.0.113.0/24,allowed.test")?;
    usual()?;
    assert_eq!(stand.property("NRestarts")?, "0");
    println!("{}", stand.machine.must(&["systemd-analyze", "security", "--no-pager", UNIT])?);
    Ok(())
}

#[test]
fn sandboxes_that_are_made_within_the_bounds_of_the_service_outlive_it() -> Result<()> {
    /// A provider of taps.
    const TAPS: &str = "#!/bin/sh\nset -e\ncase $1 in\n\
        create) ip tuntap add tap7 mode tap; echo '{\"iface\":\"tap7\",\"addrs\":[\"10.79.0.2\"]}' ;;\n\
        destroy) ip link del tap7 ;;\nesac\n";
    let stand = Stand::installed()?;
    stand.drop_in("loud.conf", LOUD)?;
    let links = || tool(stand.topology.host(), "ip", &["-br", "link"]);
    let outlives = |iface: &str| -> Result<()> {
        let made =
            stand.api().ask("POST", "/sandboxes", Some(&json!({ "templateID": "base" })))?.success()?;
        let id = made["sandboxID"].as_str().context("no id")?;
        assert!(links()?.contains(iface), "{iface}");
        stand.machine.must(&["systemctl", "restart", UNIT])?;
        if iface != "tap7" {
            // Everybody sees it.
            let name = format!("{iface}{}", id.get(..11).filter(|_| iface == "ctr-").unwrap_or(id));
            stand.machine.must(&["ip", "netns", "exec", &name, "ip", "address", "show", "dev", "eth0"])?;
        }
        stand.api().ask("DELETE", &format!("/sandboxes/{id}"), None)?.success()?;
        assert!(!links()?.contains(iface), "{iface}");
        Ok(())
    };
    outlives("sbx-")?;

    let example = "/usr/share/doc/sandbox-filter/examples/container.sh";
    let own = "/usr/local/bin/taps";
    fs::write(stand.machine.path(own), TAPS)?;
    stand.machine.must(&["chmod", "755", own])?;
    let command = |program: &str| format!("command = \"{program}\"");
    stand.configure(&[("kind = \"netns\"", "kind = \"exec\""), (&command(""), &command(example))])?;
    outlives("ctr-")?;
    stand.configure(&[(&command(example), &command(own))])?;
    outlives("tap7")?;
    assert_eq!(stand.property("NRestarts")?, "0");
    Ok(())
}

#[test]
fn a_daemon_that_does_not_answer_is_replaced() -> Result<()> {
    let stand = Stand::installed()?;
    let _echo = stand.topology.serve(Service::TcpEcho, 7)?;
    stand.attach(&A.to_string())?;
    stand.drop_in("soon.conf", "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")?;
    let first = stand.property("MainPID")?;
    // It is fed as long as the daemon answers.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((stand.property("MainPID")?, stand.property("NRestarts")?), (first.clone(), "0".to_owned()));

    stand.machine.must(&["kill", "-STOP", &first])?;
    assert!(reaches(&stand.sandbox, (A, 7))? && !reaches(&stand.sandbox, (B, 7))?);
    eventually("systemd restarts it", LONG, || Ok(stand.property("NRestarts")? == "1"))?;
    eventually("it is ready again", LONG, || Ok(stand.property("ActiveState")? == "active"))?;
    assert_ne!(stand.property("MainPID")?, first);
    assert!(reaches(&stand.sandbox, (A, 7))? && !reaches(&stand.sandbox, (B, 7))?);
    assert_eq!(stand.show()?["enforced"], json!(true));

    // One that lives, but cannot be asked any more, is none either.
    fs::remove_file(stand.machine.path("/run/sandbox-filter/control.sock"))?;
    eventually("systemd restarts it again", LONG, || Ok(stand.property("NRestarts")? == "2"))?;
    eventually("it is ready again", LONG, || Ok(stand.property("ActiveState")? == "active"))?;
    assert_eq!(stand.show()?["enforced"], json!(true));

    // With a configuration that it does not understand there is none, and all the same a filter.
    assert!(stand.configure(&[("[kernel]", "[kernle]")]).is_err());
    assert_eq!(stand.property("Result")?, "exit-code");
    assert_eq!(stand.property("ActiveState")?, "failed");
    assert!(reaches(&stand.sandbox, (A, 7))? && !reaches(&stand.sandbox, (B, 7))?);
    Ok(())
}

#[test]
fn an_upgrade_leaves_no_gap() -> Result<()> {
    let stand = Stand::installed()?;
    stand.configure(&[("egress_connections = 2500", "egress_connections = 2400")])?;
    let _echo = stand.topology.serve(Service::TcpEcho, 7)?;
    let _udp = stand.topology.serve(Service::UdpEcho, 53)?;
    stand.attach(&A.to_string())?;
    let first = stand.property("MainPID")?;
    let arrived = stand.topology.capture()?;
    let mut held = stand.sandbox.tcp_connect((A, 7), PATIENCE).result?;
    let probes = Probes::start(&stand.sandbox, (A, 7).into(), (B, 7).into())?
        .and_udp(&stand.sandbox, (A, 53).into())?;
    std::thread::sleep(Duration::from_millis(300));

    stand.machine.install(2)?;

    std::thread::sleep(Duration::from_millis(300));
    let asked = probes.finish()?;
    println!("{} probes, the longest {:?}", asked.sent, asked.longest);
    let version = ["dpkg-query", "--show", "--showformat=${Version}", "sandbox-filter"];
    assert!(stand.machine.must(&version)?.ends_with("-2"));
    assert_ne!(stand.property("MainPID")?, first);
    assert_eq!(stand.property("NRestarts")?, "0");
    assert_eq!(arrived.frames_to(B)?, 0, "what is denied did not get through");
    assert!(arrived.tcp_frames_to(SocketAddr::new(A, 7))? > 0);
    held.write_all(b"!")?;
    held.read_exact(&mut [0])?;
    let show = stand.show()?;
    assert_eq!((&show["enforced"], &show["generation"]), (&json!(true), &json!(1)));
    assert!(packets(&show, "denied_cidr")? > 0);
    // What the administrator has changed is still there.
    let config = fs::read_to_string(stand.machine.path("/etc/sandbox-filter/config.toml"))?;
    assert!(config.contains("egress_connections = 2400"));
    Ok(())
}

#[test]
fn removal_leaves_no_trace() -> Result<()> {
    let stand = Stand::bare()?;
    let _echo = stand.topology.serve(Service::TcpEcho, 7)?;
    // What any package leaves: dpkg's own notes, and those of whom it tells.
    let foreign = |path: &PathBuf| {
        let others = ["/var/lib/dpkg", "/var/log", "/var/cache", "/var/lib/systemd", "/etc/systemd"];
        others.iter().any(|other| path.starts_with(other))
            && !path.to_string_lossy().contains("sandbox-filter")
    };
    let changed = || -> Result<Vec<PathBuf>> {
        Ok(stand.machine.changed()?.into_iter().filter(|path| !foreign(path)).collect())
    };
    let (files, traces) = (changed()?, stand.traces()?);
    stand.machine.install(1)?;
    stand.attach("203.0.113.0/24,allowed.test")?;
    stand.api().ask("POST", "/sandboxes", Some(&json!({ "templateID": "base" })))?.success()?;
    assert!(!reaches(&stand.sandbox, (B, 7))?);
    assert!(stand.traces()?.len() > traces.len());

    // Whoever does not know what to clean up removes nothing.
    let path = stand.machine.path("/etc/sandbox-filter/config.toml");
    let config = fs::read_to_string(&path)?;
    fs::write(&path, "[nonsense]\n")?;
    assert_ne!(stand.machine.run(&["dpkg", "--remove", "sandbox-filter"])?.code, 0);
    assert!(!reaches(&stand.sandbox, (B, 7))?, "still filtered");
    fs::write(&path, config)?;

    stand.machine.must(&["dpkg", "--remove", "sandbox-filter"])?;
    assert!(reaches(&stand.sandbox, (B, 7))?, "unfiltered");
    let left: Vec<_> = stand.traces()?.difference(&traces).cloned().collect();
    assert_eq!(left, ["/var/lib/sandbox-filter"], "with the secrets that tokens are derived from");
    assert!(stand.machine.path("/etc/sandbox-filter/config.toml").exists());

    // It can come back, and is as it was.
    stand.machine.install(2)?;
    assert_eq!(stand.property("ActiveState")?, "active");
    stand.machine.must(&["dpkg", "--purge", "sandbox-filter"])?;
    let left: Vec<_> = stand.traces()?.difference(&traces).cloned().collect();
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(changed()?, files);
    Ok(())
}
