use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{
    config::sections::Rate,
    control::Answer,
    error::ErrorCode,
    limits::Limiter,
    protocol::{AttachRequest, Authority, Show, Stats, Summary, Tokens, tests::show},
    sandboxes::provider::Order,
};

/// Interfaces without a kernel: remembers who is attached, and by which policy.
#[derive(Default)]
pub(crate) struct FakeControl {
    pub attached: Mutex<HashMap<SandboxId, Show>>,
    pub fails: AtomicBool,
}

impl FakeControl {
    fn there(&self) -> MutexGuard<'_, HashMap<SandboxId, Show>> {
        self.attached.lock().unwrap()
    }

    fn find(&self, id: &SandboxId) -> Result<Show, ControlError> {
        self.there().get(id).cloned().ok_or_else(|| ControlError::not_found(id))
    }
}

fn read(document: Option<Value>) -> Result<filter_policy::Policy, ControlError> {
    Ok(filter_policy::Policy::from_value(document.unwrap_or_else(|| json!({})), &Default::default())?)
}

impl Control for FakeControl {
    fn validate(&self, policy: Option<Value>) -> Answer<'_, ()> {
        Box::pin(async move { read(policy).map(drop) })
    }

    fn attach(&self, request: AttachRequest) -> Answer<'_, Show> {
        Box::pin(async move {
            if request.id.as_str() == "panic" {
                panic!("as a defect would");
            }
            let policy = read(request.policy)?;
            if self.fails.load(Ordering::Relaxed) {
                return Err(ControlError::failed("the kernel refuses"));
            }
            if self.there().contains_key(&request.id) {
                return Err(ControlError::conflict("the id is taken"));
            }
            let shown = Show {
                iface: request.iface,
                policy: policy.canonical(),
                generation: 1,
                policy_hash: policy.hash().to_string(),
                tokens: Some(Tokens {
                    traffic_access_token: "traffic".to_owned(),
                    envd_access_token: "envd".to_owned(),
                }),
                ..show(request.id.as_str())
            };
            self.there().insert(request.id, shown.clone());
            Ok(shown)
        })
    }

    fn update(&self, request: UpdateRequest) -> Answer<'_, Changed> {
        Box::pin(async move {
            let mut shown = self.find(&request.id)?;
            let tag = crate::protocol::etag(shown.generation, &shown.policy_hash);
            if request.condition.is_some_and(|condition| !condition.is_met(&tag)) {
                return Err(ControlError::precondition_failed());
            }
            let policy = read(Some(request.change.apply(|| shown.policy.clone())?))?;
            shown.policy = policy.canonical();
            shown.policy_hash = policy.hash().to_string();
            shown.generation += 1;
            let changed = Changed { generation: shown.generation, policy_hash: shown.policy_hash.clone() };
            self.there().insert(request.id, shown);
            Ok(changed)
        })
    }

    fn detach(&self, id: SandboxId) -> Answer<'_, ()> {
        Box::pin(async move { self.there().remove(&id).map(drop).ok_or_else(|| ControlError::not_found(id)) })
    }

    fn rotate_tokens(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn list(&self) -> Answer<'_, Vec<Summary>> {
        Box::pin(async move { Ok(self.there().values().cloned().map(Summary::from).collect()) })
    }

    fn show(&self, id: SandboxId, with_tokens: bool) -> Answer<'_, Show> {
        Box::pin(async move {
            let shown = self.find(&id)?;
            Ok(Show { tokens: shown.tokens.filter(|_| with_tokens), ..shown })
        })
    }

    fn stats(&self, _: Option<SandboxId>) -> Answer<'_, Stats> {
        Box::pin(async { Ok(Stats::new(Vec::new(), 0)) })
    }

    fn doctor(&self) -> Answer<'_, Value> {
        Box::pin(async { Ok(json!([])) })
    }

    fn authority(&self) -> Answer<'_, Authority> {
        Box::pin(async { Ok(Authority { certificate: "the certificate".to_owned() }) })
    }

    fn rotate_authority(&self) -> Answer<'_, Authority> {
        self.authority()
    }
}

/// Counts what it has made, and fails or hangs where it is told to.
#[derive(Default)]
pub(crate) struct FakeProvider {
    pub made: AtomicUsize,
    pub reserved: AtomicUsize,
    pub fails_at: Mutex<Option<&'static str>>,
    /// The interface that it says it has made.
    pub claims: Mutex<Option<String>>,
    /// The interfaces of those that it has taken away.
    pub destroyed: Mutex<Vec<String>>,
    pub slow: AtomicBool,
}

impl FakeProvider {
    async fn step(&self, name: &'static str) -> Result<(), ControlError> {
        if self.slow.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if *self.fails_at.lock().unwrap() == Some(name) {
            return Err(ControlError::failed(format!("no luck with {name}")));
        }
        Ok(())
    }
}

impl Provider for FakeProvider {
    fn reserve(&self, id: &SandboxId) -> Result<Option<Port>, ControlError> {
        self.reserved.fetch_add(1, Ordering::Relaxed);
        let iface: String = id.as_str().chars().take(8).collect();
        Ok(Some(Port { iface, addrs: vec!["10.9.9.9".parse().unwrap()], mac: None }))
    }

    fn adopt(&self, _: &Port) {
        self.reserved.fetch_add(1, Ordering::Relaxed);
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    fn release(&self, _: &Port) {
        self.reserved.fetch_sub(1, Ordering::Relaxed);
    }

    fn create(&self, _: Order, reserved: Option<Port>) -> Answer<'_, Port> {
        Box::pin(async move {
            // Half of it is there by the time it fails.
            self.made.fetch_add(1, Ordering::Relaxed);
            self.step("create").await?;
            let mut port = reserved.unwrap();
            if let Some(iface) = self.claims.lock().unwrap().clone() {
                port.iface = iface;
            }
            Ok(port)
        })
    }

    fn start(&self, _: Port) -> Answer<'_, ()> {
        Box::pin(self.step("start"))
    }

    fn destroy(&self, _: SandboxId, port: Option<Port>) -> Answer<'_, ()> {
        Box::pin(async move {
            self.step("destroy").await?;
            self.destroyed.lock().unwrap().extend(port.map(|port| port.iface));
            self.made.fetch_sub(1, Ordering::Relaxed);
            Ok(())
        })
    }
}

struct Stand {
    keeper: Arc<Sandboxes>,
    control: Arc<FakeControl>,
    provider: Arc<FakeProvider>,
    state: TempDir,
}

fn stand() -> Stand {
    let (control, provider) = (Arc::new(FakeControl::default()), Arc::new(FakeProvider::default()));
    let state = tempfile::tempdir().unwrap();
    let keeper = Arc::new(Sandboxes::new(control.clone(), provider.clone(), state.path()).unwrap());
    Stand { keeper, control, provider, state }
}

impl Stand {
    fn files(&self) -> usize {
        std::fs::read_dir(self.state.path().join("made")).unwrap().count()
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.provider.made.load(Ordering::Relaxed), 0, "made");
        assert_eq!(self.provider.reserved.load(Ordering::Relaxed), 0, "reserved");
        assert_eq!(self.control.there().len(), 0, "attached");
        assert_eq!((self.files(), self.keeper.table().len()), (0, 0));
    }

    async fn make(&self, owner: &Owner) -> Result<Record, CreateError> {
        let none = Allowance::default();
        self.keeper.create(new(owner), &none, &none).await.map(|(record, _)| record)
    }
}

fn new(owner: &Owner) -> NewSandbox {
    NewSandbox {
        owner: owner.clone(),
        template_id: "base".to_owned(),
        metadata: BTreeMap::new(),
        env_vars: BTreeMap::new(),
        secure: true,
        timeout: Duration::from_secs(300),
        policy: None,
    }
}

fn key(name: &str) -> Owner {
    Owner::Key(name.to_owned())
}

#[tokio::test]
async fn a_sandbox_is_its_owners_and_nobody_elses() {
    let stand = stand();
    let (a, b) = (key("a"), key("b"));
    let made = stand.make(&a).await.unwrap();
    let text = made.id.as_str();
    assert!(
        text.len() == 20 && text.starts_with('i') && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
    );
    assert_eq!(stand.keeper.get(&a, &made.id), Some(made.clone()));
    assert_eq!(stand.keeper.get(&b, &made.id), None);
    assert_eq!(stand.keeper.get(&Owner::Operator, &made.id), Some(made.clone()));
    assert_eq!((stand.keeper.list(&a).len(), stand.keeper.list(&b).len()), (1, 0));
    let minute = Duration::from_secs(60);
    for error in [
        stand.keeper.kill(&b, &made.id).await.unwrap_err(),
        stand.keeper.set_timeout(&b, &made.id, minute, true).await.unwrap_err(),
        stand.keeper.change_network(&b, &made.id, Change::Replace(json!({})), None).await.unwrap_err(),
    ] {
        assert_eq!(error.code, ErrorCode::NotFound);
    }
    assert_eq!(stand.keeper.get(&a, &made.id), Some(made.clone()));
    stand.keeper.kill(&a, &made.id).await.unwrap();
    assert_eq!(stand.keeper.kill(&a, &made.id).await.unwrap_err().code, ErrorCode::NotFound);
    stand.nothing_is_left();
}

#[tokio::test]
async fn what_fails_leaves_nothing() {
    let stand = stand();
    let owner = key("a");
    for step in ["create", "start"] {
        *stand.provider.fails_at.lock().unwrap() = Some(step);
        let Err(CreateError::Control(error)) = stand.make(&owner).await else {
            panic!("{step} did not fail")
        };
        assert!(error.message.contains(step));
        stand.nothing_is_left();
    }
    *stand.provider.fails_at.lock().unwrap() = None;
    stand.control.fails.store(true, Ordering::Relaxed);
    assert!(stand.make(&owner).await.is_err());
    stand.nothing_is_left();
    let none = Allowance::default();
    let bad = NewSandbox { policy: Some(json!({ "denyOut": ["x"] })), ..new(&owner) };
    let Err(CreateError::Control(error)) = stand.keeper.create(bad, &none, &none).await else { panic!() };
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::InvalidPolicy, "invalid denied CIDR x"));
    stand.nothing_is_left();
}

#[tokio::test]
async fn an_interface_is_one_sandboxs() {
    let stand = stand();
    let owner = key("a");
    let first = stand.make(&owner).await.unwrap();
    let iface = first.port.clone().unwrap().iface;
    *stand.provider.claims.lock().unwrap() = Some(iface.clone());
    let Err(CreateError::Control(error)) = stand.make(&owner).await else { panic!("it has two") };
    assert_eq!(error.code, ErrorCode::Failed);
    assert!(!error.message.contains(first.id.as_str()) && !error.message.contains(&iface));
    assert!(!stand.provider.destroyed.lock().unwrap().contains(&iface), "it is the first one's");
    *stand.provider.claims.lock().unwrap() = None;
    assert!(stand.keeper.get(&owner, &first.id).is_some());
    stand.keeper.kill(&owner, &first.id).await.unwrap();
    assert!(stand.provider.destroyed.lock().unwrap().contains(&iface));
    stand.nothing_is_left();
    assert_eq!(stand.keeper.table().claimed(), 0);
}

#[tokio::test]
async fn an_end_that_fails_changes_nothing_and_can_be_had_again() {
    let stand = stand();
    let owner = key("a");
    let made = stand.make(&owner).await.unwrap();
    *stand.provider.fails_at.lock().unwrap() = Some("destroy");
    assert_eq!(stand.keeper.kill(&owner, &made.id).await.unwrap_err().code, ErrorCode::Failed);
    assert!(stand.control.there().contains_key(&made.id), "still filtered");
    assert!(stand.keeper.get(&owner, &made.id).is_some());
    *stand.provider.fails_at.lock().unwrap() = None;
    stand.keeper.kill(&owner, &made.id).await.unwrap();
    stand.nothing_is_left();
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_taken_back_counts_until_it_is() {
    let stand = stand();
    let owner = key("a");
    let one = Allowance { concurrent: Some(1), rate: None };
    let none = Allowance::default();
    stand.control.fails.store(true, Ordering::Relaxed);
    *stand.provider.fails_at.lock().unwrap() = Some("destroy");
    assert!(stand.keeper.create(new(&owner), &one, &none).await.is_err());
    assert_eq!(stand.keeper.list(&owner).len(), 0, "nobody can use it");
    assert!(matches!(stand.keeper.create(new(&owner), &one, &none).await, Err(CreateError::TooMany(1))));
    *stand.provider.fails_at.lock().unwrap() = None;
    let id = stand.keeper.table().next_end().unwrap().1.clone();
    stand.keeper.clone().end(&id).await;
    stand.nothing_is_left();
}

#[tokio::test]
async fn there_are_no_more_than_may_be() {
    let stand = stand();
    let (a, b) = (key("a"), key("b"));
    let two = Allowance { concurrent: Some(2), rate: None };
    let host = Allowance { concurrent: Some(3), rate: None };
    let create = async |owner: &Owner| stand.keeper.create(new(owner), &two, &host).await;
    let first = create(&a).await.unwrap().0;
    create(&a).await.unwrap();
    assert!(matches!(create(&a).await, Err(CreateError::TooMany(2))));
    create(&b).await.unwrap();
    assert!(matches!(create(&b).await, Err(CreateError::TooMany(3))));
    stand.keeper.kill(&a, &first.id).await.unwrap();
    create(&a).await.unwrap();

    let rate = Rate { requests: 1, per: Duration::from_secs(60) };
    let slow = Allowance { concurrent: None, rate: Limiter::new(rate).map(Arc::new) };
    let none = Allowance::default();
    let stand = self::stand();
    stand.keeper.create(new(&a), &slow, &none).await.unwrap();
    assert!(matches!(stand.keeper.create(new(&a), &slow, &none).await, Err(CreateError::TooFast(_))));
    assert_eq!(stand.provider.made.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn there_are_no_more_than_may_be_however_many_ask_at_once() {
    let stand = stand();
    stand.provider.slow.store(true, Ordering::Relaxed);
    let owner = key("a");
    let three = Allowance { concurrent: Some(3), rate: None };
    let asking = (0..20).map(|_| {
        let (keeper, new, three) = (stand.keeper.clone(), new(&owner), three.clone());
        tokio::spawn(async move { keeper.create(new, &three, &Allowance::default()).await.is_ok() })
    });
    let mut made = 0;
    for asked in asking.collect::<Vec<_>>() {
        made += usize::from(asked.await.unwrap());
    }
    assert_eq!((made, stand.provider.made.load(Ordering::Relaxed)), (3, 3));
}

#[tokio::test]
async fn time_ends_a_sandbox_and_more_time_puts_that_off() {
    let stand = stand();
    let owner = key("a");
    let ending = tokio::spawn(stand.keeper.clone().end_in_time());
    let none = Allowance::default();
    let short = NewSandbox { timeout: Duration::from_millis(200), ..new(&owner) };
    let (first, _) = stand.keeper.create(short.clone(), &none, &none).await.unwrap();
    let (second, _) = stand.keeper.create(short, &none, &none).await.unwrap();
    let hour = Duration::from_secs(3600);
    let later = stand.keeper.set_timeout(&owner, &second.id, hour, false).await.unwrap();
    assert!(later.end_at > second.end_at);
    let same = stand.keeper.set_timeout(&owner, &second.id, Duration::ZERO, false).await.unwrap();
    assert_eq!(same.end_at, later.end_at, "connecting never shortens");
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(stand.keeper.get(&owner, &first.id).is_none());
    assert!(stand.keeper.get(&owner, &second.id).is_some());
    stand.keeper.set_timeout(&owner, &second.id, Duration::ZERO, true).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    stand.nothing_is_left();
    ending.abort();
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was() {
    let stand = stand();
    let owner = key("a");
    let runs = stand.make(&owner).await.unwrap();
    let lost = stand.make(&owner).await.unwrap();
    stand.control.there().remove(&lost.id);
    // One of which nothing but the plan was there.
    let planned = Record { id: "planned".parse().unwrap(), port: None, ..runs.clone() };
    stand.keeper.records.save(&planned).unwrap();

    let provider = Arc::new(FakeProvider::default());
    provider.made.store(1, Ordering::Relaxed);
    let again =
        Arc::new(Sandboxes::new(stand.control.clone(), provider.clone(), stand.state.path()).unwrap());
    again.resume().await.unwrap();
    assert_eq!(again.list(&owner), std::slice::from_ref(&runs));
    assert_eq!((provider.made.load(Ordering::Relaxed), stand.files()), (1, 1));
    again.kill(&owner, &runs.id).await.unwrap();
    assert_eq!((provider.made.load(Ordering::Relaxed), stand.files(), again.table().len()), (0, 0, 0));
}

#[tokio::test]
async fn what_is_done_to_one_sandbox_is_done_in_turn() {
    let stand = stand();
    let owner = key("a");
    let made = stand.make(&owner).await.unwrap();
    stand.provider.slow.store(true, Ordering::Relaxed);
    let mut killed = 0;
    let kills: Vec<_> = (0..8)
        .map(|_| {
            let (keeper, owner, id) = (stand.keeper.clone(), owner.clone(), made.id.clone());
            tokio::spawn(async move { keeper.kill(&owner, &id).await })
        })
        .collect();
    let change = stand.keeper.change_network(&owner, &made.id, Change::Replace(json!({})), None).await;
    for kill in kills {
        match kill.await.unwrap() {
            Ok(()) => killed += 1,
            Err(error) => assert_eq!(error.code, ErrorCode::NotFound),
        }
    }
    assert_eq!(killed, 1);
    assert!(change.is_ok() || change.is_err_and(|error| error.code == ErrorCode::NotFound));
    stand.nothing_is_left();
}

#[tokio::test]
async fn a_lost_interface_ends_its_sandbox() {
    let stand = stand();
    let made = stand.make(&key("a")).await.unwrap();
    stand.control.there().remove(&made.id);
    stand.keeper.lost(&made.id).await;
    stand.keeper.lost(&made.id).await;
    stand.nothing_is_left();
}

#[tokio::test]
async fn an_interface_that_goes_before_its_sandbox_runs_ends_it_too() {
    let stand = stand();
    stand.provider.slow.store(true, Ordering::Relaxed);
    let none = Allowance::default();
    let owner = key("a");
    let making = tokio::spawn({
        let (keeper, new) = (stand.keeper.clone(), new(&owner));
        async move { keeper.create(new, &none, &none).await.is_ok() }
    });
    // Attached, and not switched on yet.
    let id = loop {
        let attached = stand.control.there().keys().next().cloned();
        if let Some(id) = attached {
            break id;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert!(stand.keeper.get(&owner, &id).is_none());
    stand.control.there().remove(&id);
    stand.keeper.lost(&id).await;
    assert!(making.await.unwrap());
    stand.nothing_is_left();
}
