//! From a query to its answer.

use std::time::Duration;

use filter_common::{Class, Reason, RuleWord};
use filter_policy::{Name, evaluate};
use hickory_proto::op::ResponseCode;

use super::{
    answer,
    load::{Load, Place},
    query::{self, Parsed, Query, Verdict},
    tally::Tally,
};
use crate::{
    host::{Event, Flow, Happening, Host, Tenant, Transport},
    resolve::{Answer, Resolver},
    rules::Rules,
};

/// Answers the queries of sandboxes. Clones share the limits.
#[derive(Clone, Debug)]
pub struct Forwarder {
    resolver: Resolver,
    load: Load,
    tally: Tally,
}

/// The answer to a query.
#[derive(Clone, PartialEq, Debug)]
pub struct Reply {
    /// As it goes out, without the length that TCP puts in front.
    pub bytes: Vec<u8>,
    /// The name that was asked for, if it is a host's.
    pub name: Option<Name>,
    /// Why the policy refused, if it did.
    pub decision: Result<(), Reason>,
    /// What the answer says.
    pub rcode: ResponseCode,
}

impl Forwarder {
    /// A forwarder that asks this resolver.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver, load: Load::default(), tally: Tally::default() }
    }

    /// How many answers there were, each code with its name in metrics.
    pub fn tally(&self) -> impl Iterator<Item = (ResponseCode, &'static str, u64)> {
        self.tally.counts()
    }

    /// A place for another query of the sandbox; `None` if it, or all sandboxes together, have as many as
    /// they may. Then [`Self::busy`] is the answer.
    pub fn admit(&self, tenant: Tenant) -> Option<Place> {
        self.load.enter(tenant)
    }

    /// The answer to one query too many, at once: an asker that hears nothing would wait and ask again.
    pub fn busy(&self, query: &[u8], over: Transport) -> Option<Reply> {
        let reply = without_asking(query, over, ResponseCode::ServFail, Ok(()))?;
        self.tally.count(reply.rcode);
        Some(reply)
    }

    /// Answers a sandbox's query by the rules in force at this moment, and has a refusal told. `None`: there
    /// is nothing to be said, or nobody left to say it to.
    pub async fn serve(
        &self,
        place: &Place,
        query: &[u8],
        flow: &Flow,
        tenant: Tenant,
        host: &impl Host,
    ) -> Option<Reply> {
        let Some(_turn) = place.turn().await else { return self.busy(query, flow.transport) };
        let rules = host.rules(tenant)?;
        let reply = if is_open(&rules, flow) {
            self.answer(query, flow.transport, &rules).await?
        } else {
            without_asking(query, flow.transport, ResponseCode::Refused, Err(Reason::DnsRefused))?
        };
        self.tally.count(reply.rcode);
        if let Err(reason) = reply.decision {
            host.tell(tenant, refusal(reason, &rules, flow, &reply, query.len()));
        }
        Some(reply)
    }

    /// Answers one query of a sandbox. `None`: not worth an answer, since it is no query.
    pub async fn answer(&self, query: &[u8], over: Transport, rules: &Rules) -> Option<Reply> {
        let query = match query::parse(query) {
            Parsed::Query(query) => query,
            Parsed::Rejected(header, rcode) => return rejected(&header, rcode),
            Parsed::Nothing => return None,
        };
        let (answer, decision) = match query.judge(rules) {
            Verdict::Ask => {
                let mut found = self.resolver.lookup(&query.name, query.kind).await;
                answer::clean(&mut found, &rules.guard);
                (found, Ok(()))
            }
            Verdict::Minimal => (answer::minimal(&query), Ok(())),
            Verdict::Refuse => (answer::empty(ResponseCode::Refused), Err(Reason::DnsRefused)),
            Verdict::Reject(rcode) => (answer::empty(rcode), Ok(())),
        };
        reply(&query, answer, over, decision)
    }
}

/// Whether the policy still opens the resolver that is asked. The kernel punts nothing else; but the policy
/// may have been replaced since, or while a connection is open.
fn is_open(rules: &Rules, flow: &Flow) -> bool {
    match evaluate(&rules.compiled, flow.destination.ip().into()).class() {
        Class::Resolver | Class::Allowed | Class::Unmatched | Class::Observed => true,
        Class::Denied | Class::Guarded | Class::Inspected | Class::Named => false,
    }
}

fn without_asking(
    query: &[u8],
    over: Transport,
    rcode: ResponseCode,
    decision: Result<(), Reason>,
) -> Option<Reply> {
    match query::parse(query) {
        Parsed::Query(query) => reply(&query, answer::empty(rcode), over, decision),
        Parsed::Rejected(header, rcode) => rejected(&header, rcode),
        Parsed::Nothing => None,
    }
}

fn reply(query: &Query, answer: Answer, over: Transport, decision: Result<(), Reason>) -> Option<Reply> {
    let rcode = answer.rcode;
    let (bytes, rcode) = match answer::write(query, answer, over) {
        Some(bytes) => (bytes, rcode),
        None => {
            let failure = answer::empty(ResponseCode::ServFail);
            (answer::write(query, failure, over)?, ResponseCode::ServFail)
        }
    };
    Some(Reply { bytes, name: query.host(), decision, rcode })
}

fn rejected(header: &query::Header, rcode: ResponseCode) -> Option<Reply> {
    Some(Reply { bytes: answer::write_bare(header, rcode)?, name: None, decision: Ok(()), rcode })
}

fn refusal(reason: Reason, rules: &Rules, flow: &Flow, reply: &Reply, asked: usize) -> Event {
    Event {
        happening: Happening::Deny,
        reason,
        rule: RuleWord::UNMATCHED,
        generation: rules.generation,
        flow: *flow,
        server_name: reply.name.as_ref().map(Name::to_string),
        resolved: None,
        bytes_out: u64::try_from(asked).unwrap_or(u64::MAX),
        bytes_in: u64::try_from(reply.bytes.len()).unwrap_or(u64::MAX),
        duration: Duration::ZERO,
    }
}
