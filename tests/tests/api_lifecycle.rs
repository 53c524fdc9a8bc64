//! Sandboxes that the API makes: what there is of them, that it goes with them, and that it outlives the daemon.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod api_common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use api_common::{A, B, KEY, PORT, Stand, configured, eventually, inside, reaches};
use filter_tests::{Daemon, Service, Topology};
use serde_json::{Value, json};

#[test]
fn a_sandbox_is_a_namespace_with_a_wire_and_an_address() -> Result<()> {
    let stand = Stand::new()?;
    let id = stand.create(json!({ "denyOut": [B] }))?;
    assert!(reaches(&id, A)? && !reaches(&id, B)?);
    assert_eq!(inside(&id)?.links()?, ["lo", "eth0"]);
    // As people run things in it.
    let output = Command::new("ip")
        .args(["netns", "exec", &format!("sbx-{id}"), "cat", "/etc/resolv.conf"])
        .output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "nameserver 8.8.8.8\n", "{output:?}");
    let show = stand.daemon.show(&id)?;
    assert_eq!((&show["identity"], &show["enforced"]), (&json!("checked"), &json!(true)));
    assert_eq!(show["addrs"], json!(["10.200.0.2"]));
    // It may use no other address, and the command line does not leave it unfiltered.
    let spoof = inside(&id)?;
    spoof.add_address("eth0", "10.200.0.77/32".parse()?)?;
    let detach = stand.daemon.cli(&["detach", &id])?;
    assert_eq!(detach.code, 4, "{detach:?}");
    assert!(detach.stderr.contains("made through the API"), "{}", detach.stderr);
    stand.kill(&id)?;
    assert!(stand.left()?.nothing_of(&id), "{:?}", stand.left()?);
    // The next one has other tokens, another address, and nothing of the last.
    let next = stand.create(json!({}))?;
    assert_eq!(stand.daemon.show(&next)?["addrs"], json!(["10.200.0.3"]));
    assert!(reaches(&next, B)?);
    Ok(())
}

#[test]
fn sandboxes_outlive_the_daemon_and_their_time_goes_on() -> Result<()> {
    let mut stand = Stand::new()?;
    let stays = stand.create(json!({ "denyOut": [B] }))?;
    let ends = stand.create(json!({}))?;
    let tokens = |stand: &Stand| {
        stand.ask(KEY, "POST", &format!("/sandboxes/{stays}/connect"), Some(&json!({ "timeout": 1 })))
    };
    let before = tokens(&stand)?.success()?;
    let soon = json!({ "timeout": 2 });
    stand.ask(KEY, "POST", &format!("/sandboxes/{ends}/timeout"), Some(&soon))?.success()?;
    stand.daemon.kill9()?;
    assert!(reaches(&stays, A)? && !reaches(&stays, B)?, "enforced without a daemon");
    thread::sleep(Duration::from_millis(2500));
    stand.daemon.start()?;
    assert_eq!(tokens(&stand)?.success()?, before);
    eventually("the other ended", || Ok(inside(&ends).is_err()))?;
    let list = stand.ask(KEY, "GET", "/sandboxes", None)?.success()?;
    assert_eq!((list.as_array().map(Vec::len), &list[0]["sandboxID"]), (Some(1), &json!(stays)));
    assert!(reaches(&stays, A)? && !reaches(&stays, B)?);
    let path = format!("/sandboxes/{stays}/network");
    stand.ask(KEY, "PUT", &path, Some(&json!({ "denyOut": [A] })))?.success()?;
    assert!(!reaches(&stays, A)? && reaches(&stays, B)?);
    // A new one does not get what the old one has.
    let new = stand.create(json!({}))?;
    assert_ne!(stand.daemon.show(&new)?["addrs"], stand.daemon.show(&stays)?["addrs"]);
    for id in [&stays, &new] {
        stand.kill(id)?;
    }
    assert!(stand.left()?.nothing_of(&stays), "{:?}", stand.left()?);
    Ok(())
}

#[test]
fn a_daemon_killed_in_the_middle_leaves_nothing_half_made() -> Result<()> {
    let mut stand = Stand::new()?;
    let body = json!({ "templateID": "base" });
    for round in 0..4 {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| stand.ask(KEY, "POST", "/sandboxes", Some(&body)).ok());
            }
            thread::sleep(Duration::from_millis(10 + round * 25));
            // The daemon goes while they are being made.
            let id = stand.daemon.id().map(|id| i32::try_from(id).unwrap()).unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        });
        let _ = stand.daemon.kill9();
        stand.daemon.start()?;
        let list = stand.ask(KEY, "GET", "/sandboxes", None)?.success()?;
        let list = list.as_array().context("no list")?;
        let left = stand.left()?;
        assert_eq!((left.links.len(), left.pins), (list.len(), list.len()), "{left:?} {list:?}");
        for sandbox in list {
            let id = sandbox["sandboxID"].as_str().unwrap();
            assert!(reaches(id, A)?);
            stand.kill(id)?;
        }
    }
    assert!(stand.left()?.nothing_of("none"), "{:?}", stand.left()?);
    Ok(())
}

#[test]
fn a_daemon_killed_while_sandboxes_end_finishes_that() -> Result<()> {
    let mut stand = Stand::new()?;
    for round in 0..3 {
        let ids: Vec<String> = (0..4).map(|_| stand.create(json!({}))).collect::<Result<_>>()?;
        thread::scope(|scope| {
            for id in &ids {
                let stand = &stand;
                scope.spawn(move || stand.ask(KEY, "DELETE", &format!("/sandboxes/{id}"), None).ok());
            }
            thread::sleep(Duration::from_millis(5 + round * 25));
            let id = stand.daemon.id().map(|id| i32::try_from(id).unwrap()).unwrap();
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        });
        let _ = stand.daemon.kill9();
        stand.daemon.start()?;
        // Some may not have been begun with: those go on, and can be ended.
        let list = stand.ask(KEY, "GET", "/sandboxes", None)?.success()?;
        for sandbox in list.as_array().context("no list")? {
            let id = sandbox["sandboxID"].as_str().context("no id")?;
            assert!(reaches(id, A)?);
            stand.kill(id)?;
        }
        for id in &ids {
            assert!(stand.left()?.nothing_of(id), "{:?}", stand.left()?);
        }
    }
    Ok(())
}

#[test]
fn an_interface_that_goes_takes_its_sandbox_along() -> Result<()> {
    let stand = Stand::new()?;
    let id = stand.create(json!({}))?;
    let link = stand.left()?.links[0].clone();
    stand.topology.host().delete_link(&link)?;
    eventually("the sandbox ended", || Ok(stand.left()?.nothing_of(&id)))?;
    assert_eq!(stand.ask(KEY, "GET", &format!("/sandboxes/{id}"), None)?.status, 404);
    Ok(())
}

#[test]
fn operations_on_one_sandbox_at_once_follow_one_another() -> Result<()> {
    let stand = Stand::new()?;
    for _ in 0..5 {
        let id = stand.create(json!({}))?;
        let path = format!("/sandboxes/{id}/network");
        let statuses: Vec<(u16, u16)> = thread::scope(|scope| {
            let workers: Vec<_> = (0..6)
                .map(|n| {
                    let (stand, id, path) = (&stand, &id, &path);
                    scope.spawn(move || {
                        let body = json!({ "denyOut": [format!("198.51.100.{n}")] });
                        let update = stand.ask(KEY, "PUT", path, Some(&body)).unwrap().status;
                        let kill =
                            stand.ask(KEY, "DELETE", &format!("/sandboxes/{id}"), None).unwrap().status;
                        (update, kill)
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        assert!(statuses.iter().all(|(update, _)| matches!(update, 204 | 404)), "{statuses:?}");
        assert_eq!(statuses.iter().filter(|(_, kill)| *kill == 204).count(), 1, "{statuses:?}");
        assert!(stand.left()?.nothing_of(&id));
    }
    Ok(())
}

#[test]
fn many_rounds_leak_nothing() -> Result<()> {
    let rounds: usize =
        std::env::var("SANDBOX_FILTER_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let stand = Stand::new()?;
    // The first ones fill caches and pools.
    let (warm_up, at_once) = (8, 4);
    let mut before = None;
    for round in 0..rounds + warm_up {
        if round == warm_up {
            before = Some(resources(&stand)?);
        }
        let ids: Result<Vec<String>> = thread::scope(|scope| {
            let made: Vec<_> = (0..at_once)
                .map(|n| {
                    let stand = &stand;
                    scope.spawn(move || stand.create(json!({ "denyOut": [format!("198.51.100.{n}")] })))
                })
                .collect();
            made.into_iter().map(|made| made.join().unwrap()).collect()
        });
        for id in ids? {
            stand.kill(&id)?;
        }
    }
    assert!(stand.left()?.nothing_of("none"), "{:?}", stand.left()?);
    let before = before.context("no rounds")?;
    eventually("everything is given back", || {
        let after = resources(&stand)?;
        Ok(after.descriptors <= before.descriptors + 4
            && after.routes == before.routes
            && after.memory < before.memory + 16_384)
    })
    .with_context(|| format!("{before:?} became {:?}", resources(&stand)))
}

/// What the daemon and its host have in use.
#[derive(Debug)]
struct Resources {
    descriptors: usize,
    /// KiB.
    memory: u64,
    routes: usize,
}

fn resources(stand: &Stand) -> Result<Resources> {
    let process = PathBuf::from(format!("/proc/{}", stand.daemon.id().context("no daemon")?));
    let status = fs::read_to_string(process.join("status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let memory = memory.split_whitespace().next().context("no number")?.parse()?;
    let table = stand.topology.host().run(|| Ok(fs::read_to_string("/proc/thread-self/net/route")?))?;
    let descriptors = fs::read_dir(process.join("fd"))?.count();
    Ok(Resources { descriptors, memory, routes: table.lines().count() })
}

/// A provider's program in a directory of its own, and what it leaves there.
fn provider(dir: &Path, script: &str) -> Result<String> {
    let path = dir.join("provider");
    fs::write(&path, format!("#!/bin/sh\ncd {}\n{script}\n", dir.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(format!("[provider]\nkind = 'exec'\ncommand = {:?}\n", path.display().to_string()))
}

#[test]
fn an_operators_program_makes_sandboxes() -> Result<()> {
    let topology = Topology::new()?;
    let _echo = topology.serve(Service::TcpEcho, PORT)?;
    let dir = topology_dir()?;
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/container.sh");
    let config = format!("[provider]\nkind = 'exec'\ncommand = {:?}\n", example.canonicalize()?);
    let daemon = configured(&topology).config(&config).start()?;
    let api = daemon.api();
    let body =
        json!({ "templateID": "base", "network": { "denyOut": [B] }, "envVars": { "GREETING": "hello" } });
    let made = api.ask("POST", "/sandboxes", Some(&body))?.success()?;
    let id = made["sandboxID"].as_str().context("no id")?.to_owned();
    let show = daemon.show(&id)?;
    assert_eq!(show["enforced"], json!(true));
    let netns = format!("ctr-{}", &id[..11]);
    let inside = filter_tests::Netns::existing(&netns)?;
    for (address, reached) in [(A, true), (B, false)] {
        let to: std::net::SocketAddr = format!("{address}:{PORT}").parse()?;
        assert_eq!(inside.tcp_exchange(to, b"x", Duration::from_secs(3)).is_ok(), reached, "{address}");
    }
    api.ask("DELETE", &format!("/sandboxes/{id}"), None)?.success()?;
    assert!(filter_tests::Netns::existing(&netns).is_err());
    assert_eq!(daemon.cli_json(&["list"])?, json!([]));
    drop(dir);
    Ok(())
}

#[test]
fn a_program_that_fails_leaves_nothing_half_made() -> Result<()> {
    let topology = Topology::new()?;
    let dir = topology_dir()?;
    let config = provider(
        &dir.0,
        r#"cat >> asked; echo " $1" >> asked; [ $1 = destroy ] && exit 0
           case $(grep -c create asked) in
             1) echo "no such template" >&2; exit 1;;
             2) echo '{"iface":"nothere","addrs":["10.3.0.2"]}';;
             3) echo nonsense;;
           esac"#,
    )?;
    let daemon: Daemon = configured(&topology).config(&config).start()?;
    for why in ["no such template", "there is no interface nothere", "did not print"] {
        let refused = daemon.api().ask("POST", "/sandboxes", Some(&json!({ "templateID": "t" })))?;
        assert_eq!(refused.status, 500, "{refused:?}");
        let message = refused.body["message"].as_str().unwrap_or_default();
        assert!(message.contains(why), "{message}");
    }
    // Each was taken back, by id.
    let asked = fs::read_to_string(dir.0.join("asked"))?;
    let ids = |verb: &str| -> Vec<Value> {
        let of_verb = asked.lines().filter(|line| line.ends_with(verb));
        let documents =
            of_verb.filter_map(|line| serde_json::from_str::<Value>(line.trim_end_matches(verb)).ok());
        documents.map(|document| document["sandboxID"].clone()).collect()
    };
    assert_eq!(ids("create").len(), 3, "{asked}");
    assert_eq!(ids("create"), ids("destroy"));
    assert_eq!(daemon.api().ask("GET", "/sandboxes", None)?.success()?, json!([]));
    assert_eq!(fs::read_dir(daemon.state_dir().join("made"))?.count(), 0);
    Ok(())
}

#[test]
fn a_program_that_names_what_another_sandbox_has_harms_only_the_new_one() -> Result<()> {
    let topology = Topology::new()?;
    let dir = topology_dir()?;
    let config = provider(
        &dir.0,
        r#"input=$(cat)
           pair() { ip link add $1 type veth peer name $1-in; echo "{\"iface\":\"$1\",\"addrs\":[\"$2\"]}"; }
           case $1 in
             create)
               echo >> asked
               case $(wc -l < asked) in
                 1) pair first 10.3.0.2;;
                 2) echo '{"iface":"first","addrs":["10.3.0.3"]}';;
                 3) pair third 10.3.0.2;;
               esac;;
             destroy)
               iface=$(echo "$input" | sed -n 's/.*"iface":"\([^"]*\)".*/\1/p')
               [ -z "$iface" ] || ip link del "$iface";;
           esac"#,
    )?;
    let daemon: Daemon = configured(&topology).config(&config).start()?;
    let create =
        || daemon.api().ask("POST", "/sandboxes", Some(&json!({ "templateID": "t", "timeout": 300 })));
    let first = create()?.success()?["sandboxID"].as_str().context("no id")?.to_owned();
    for claimed in ["the interface", "the address"] {
        let refused = create()?;
        assert_eq!(refused.status, 500, "{claimed}: {refused:?}");
        // Whose it is, is nobody's business.
        assert!(!refused.body.to_string().contains(&first), "{claimed}: {refused:?}");
        assert_eq!(daemon.show(&first)?["enforced"], json!(true), "{claimed}");
        let links = topology.host().links()?;
        assert!(links.contains(&"first".to_owned()) && !links.contains(&"third".to_owned()), "{links:?}");
    }
    assert!(daemon.log().contains(&first), "the operator is told");
    daemon.api().ask("DELETE", &format!("/sandboxes/{first}"), None)?.success()?;
    assert!(!topology.host().links()?.contains(&"first".to_owned()));
    Ok(())
}

#[test]
fn a_program_ends_with_the_daemon() -> Result<()> {
    let topology = Topology::new()?;
    let dir = topology_dir()?;
    let config = provider(
        &dir.0,
        r#"input=$(cat)
           echo $1 >> asked
           case $1 in
             create) sleep 6; ip link add late type veth peer name late-in; echo made >> asked;;
             destroy) ip link del late 2> /dev/null || true;;
           esac"#,
    )?;
    let mut daemon: Daemon = configured(&topology).config(&config).start()?;
    let api = daemon.api();
    let asking =
        thread::spawn(move || api.ask("POST", "/sandboxes", Some(&json!({ "templateID": "t" }))).is_ok());
    let asked = || fs::read_to_string(dir.0.join("asked")).unwrap_or_default();
    eventually("the program runs", || Ok(asked() == "create\n"))?;
    daemon.kill9()?;
    assert!(!asking.join().unwrap());
    daemon.start()?;
    thread::sleep(Duration::from_secs(7));
    assert_eq!(asked(), "create\ndestroy\n");
    assert!(!topology.host().links()?.contains(&"late".to_owned()));
    Ok(())
}

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn topology_dir() -> Result<Dir> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("sandbox-filter-{}-{number}", std::process::id()));
    fs::create_dir_all(&path)?;
    Ok(Dir(path))
}
