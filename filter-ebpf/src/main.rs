//! The kernel programs.
//!
//! [`from_sandbox`] runs at TC ingress of a sandbox's interface, that is on what the sandbox *sends*;
//! [`to_sandbox`] at TC egress, on what is sent to it. Both give a verdict as an [`Outcome`], and this
//! file is the table that turns outcomes into actions. `sweep` judges known connections again after an
//! update; `inject` puts a frame onto an interface. Those two run only when userspace calls them.
//!
//! What a packet means and what is to become of it is decided in `filter-common`; here are the maps, each
//! owned by one module, and the helpers.
#![no_std]
#![no_main]
#![feature(core_intrinsics, asm_experimental_arch, stmt_expr_attributes)]
#![expect(internal_features, reason = "the only way to atomics on this target")]

mod atomic;
mod budget;
mod closed;
mod control;
mod counters;
mod events;
mod expiry;
mod flows;
mod inject;
mod policy;
mod punt;
mod refuse;
mod sandboxes;
mod skb;
mod sweep;
mod throttle;
mod verdict;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, sk_action},
    macros::{classifier, sk_lookup},
    programs::{SkLookupContext, TcContext},
};
use filter_common::Reason;
use filter_common::decide::Refusal;
use filter_common::layout::Sandbox;

use crate::control::Injected;
use crate::punt::Selection;
use crate::skb::Skb;
use crate::verdict::{Outcome, Subject};

/// Lets the packet go on to whatever else is attached, and then up the stack.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;
const SK_PASS: u32 = sk_action::SK_PASS;
const SK_DROP: u32 = sk_action::SK_DROP;

/// What the sandbox sends.
#[classifier]
#[inline(always)]
pub fn from_sandbox(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let injected = control::injected(&skb);
    if let Some(Injected::Plain) = injected {
        return PASS;
    }
    // An interface that is not attached, or no longer: there is nobody to judge or to count for.
    let Some(sandbox) = sandboxes::on_interface(skb.ifindex()) else { return DROP };
    if let Some(Injected::Punted) = injected {
        return punt(&skb, sandbox);
    }
    match verdict::from_sandbox(&skb, sandbox) {
        Outcome::Pass(reason) => pass(&skb, sandbox, reason),
        Outcome::Punt(None) => punt(&skb, sandbox),
        Outcome::Punt(Some(reason)) => {
            counters::count(sandbox.slot, reason, skb.frame_len());
            punt(&skb, sandbox)
        }
        Outcome::Deny(reason, refusal) => {
            let Some(subject) = Subject::noted() else { return DROP };
            deny(&skb, sandbox, subject, reason);
            match refusal {
                Refusal::Silence => DROP,
                Refusal::Reset if throttle::may_refuse(sandbox.slot) => refuse::reset(&skb, subject),
                Refusal::Unreachable if throttle::may_refuse(sandbox.slot) => {
                    refuse::unreachable(&skb, subject)
                }
                Refusal::Reset | Refusal::Unreachable => DROP,
            }
        }
    }
}

/// What is sent to the sandbox.
#[classifier]
#[inline(always)]
pub fn to_sandbox(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    // One of our own refusals on its way back, or a frame that userspace put here.
    if skb.ingress_ifindex() == skb.ifindex() || control::injected(&skb).is_some() {
        return PASS;
    }
    let Some(sandbox) = sandboxes::on_interface(skb.ifindex()) else { return DROP };
    match verdict::to_sandbox(&skb, sandbox) {
        Outcome::Pass(reason) => pass(&skb, sandbox, reason),
        // Only what a sandbox sends is punted.
        Outcome::Punt(_) => DROP,
        // The outside is told nothing.
        Outcome::Deny(reason, Refusal::Silence | Refusal::Reset | Refusal::Unreachable) => {
            let Some(subject) = Subject::noted() else { return DROP };
            deny(&skb, sandbox, subject, reason);
            DROP
        }
    }
}

/// Finds the inspector's socket for a packet that was handed to it.
#[sk_lookup]
pub fn to_inspector(ctx: SkLookupContext) -> u32 {
    match punt::select_socket(&ctx) {
        Selection::Selected | Selection::Elsewhere => SK_PASS,
        // What a sandbox sends to an address of the host is refused before; it has no other business here.
        Selection::NotPunted(ifindex) if sandboxes::on_interface(ifindex).is_some() => SK_DROP,
        Selection::NotPunted(_) => SK_PASS,
        // Any other socket would be a service of the host.
        Selection::Nobody => SK_DROP,
    }
}

/// Goes through the connections of one sandbox.
#[classifier]
pub fn sweep(ctx: TcContext) -> i32 {
    sweep::run(&ctx)
}

/// Sends the frame that it is run on.
#[classifier]
pub fn inject(ctx: TcContext) -> i32 {
    inject::run(&ctx)
}

#[inline(always)]
fn pass(skb: &Skb, sandbox: &Sandbox, reason: Reason) -> i32 {
    counters::count(sandbox.slot, reason, skb.frame_len());
    PASS
}

#[inline(always)]
fn punt(skb: &Skb, sandbox: &Sandbox) -> i32 {
    if punt::deliver(skb, sandbox) { PASS } else { DROP }
}

#[inline(always)]
fn deny(skb: &Skb, sandbox: &Sandbox, subject: &Subject, reason: Reason) {
    counters::count(sandbox.slot, reason, skb.frame_len());
    if throttle::may_tell(sandbox.slot) {
        events::denied(skb, sandbox, subject, reason);
    }
}

/// The kernel offers most helpers to GPL programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Nothing here panics: the verifier would refuse a program that could.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
