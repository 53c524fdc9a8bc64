//! Compiled policies, shared by all sandboxes that have equal ones: a thousand sandboxes of one template cost one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use filter_inspector::rules::Rules;
use filter_policy::{Canonical, Compiled, Guard, Matcher, Policy, compile};
use sha2::{Digest, Sha256};

use crate::kernel::policies::ContentHash;

/// A policy, compiled for this host.
#[derive(Debug)]
pub struct Template {
    /// What tells it from others.
    pub hash: ContentHash,
    /// The document.
    pub policy: Arc<Policy>,
    /// Its canonical form.
    pub canonical: Canonical,
    /// What the kernel decides by.
    pub compiled: Arc<Compiled>,
    names: Arc<Matcher>,
    guard: Arc<Guard>,
}

impl Template {
    /// As the inspector needs it.
    pub fn rules(&self, generation: u32) -> Arc<Rules> {
        Arc::new(Rules {
            generation,
            policy: self.policy.clone(),
            names: self.names.clone(),
            compiled: self.compiled.clone(),
            guard: self.guard.clone(),
        })
    }
}

/// Those that somebody has.
#[derive(Default)]
pub struct Templates(Mutex<HashMap<ContentHash, Weak<Template>>>);

impl Templates {
    /// The template of a policy on a host with this guard.
    pub fn of(&self, policy: &Arc<Policy>, guard: &Arc<Guard>) -> Arc<Template> {
        let canonical = policy.canonical_text();
        let hash = content_hash(&canonical, guard);
        if let Some(there) = self.lock().get(&hash).and_then(Weak::upgrade) {
            return there;
        }
        // Not under the lock: it takes a while for large policies. Whoever is second uses the first one's.
        let template = Arc::new(Template {
            hash,
            policy: policy.clone(),
            canonical,
            compiled: Arc::new(compile(policy, guard)),
            names: Arc::new(Matcher::new(policy)),
            guard: guard.clone(),
        });
        let mut templates = self.lock();
        if let Some(there) = templates.get(&hash).and_then(Weak::upgrade) {
            return there;
        }
        // Going through all of them is worth it once many may have been left.
        if templates.len() == templates.capacity() {
            templates.retain(|_, template| template.strong_count() > 0);
        }
        templates.insert(hash, Arc::downgrade(&template));
        template
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContentHash, Weak<Template>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What makes two compiled policies the same.
pub fn content_hash(policy: &Canonical, guard: &Guard) -> ContentHash {
    let mut hash = Sha256::new();
    hash.update(policy.hash().as_bytes());
    for prefix in guard.prefixes() {
        hash.update(prefix.to_string());
        hash.update([0]);
    }
    hash.finalize().into()
}
