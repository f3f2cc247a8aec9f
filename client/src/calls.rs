//! One method for each call of the contract.

use std::sync::atomic::Ordering;

use http::Method;
use serde::de::{DeserializeOwned, IgnoredAny};
use wire::recipient::{self, Sealed};
use wire::{
    Answer, Approve, Ciphertext, ClusterCa, ClusterOperators, ClusterStatus, CreateJoinToken,
    CreateKey, CreateToken, CreatedToken, DataKey, DataKeyRequest, Decrypt, Encrypt,
    ExposedVersions, GrantJoins, Health, Input, Join, JoinToken, JoinTokenStatus, JoinTokens,
    Joins, Kek, Key, Keys, ListKeys, MakeBackup, NodeId, Outcome, Page, PinRecoveryKit, Plaintext,
    Problem, Random, RandomRequest, RecoveryKit, RecoveryKits, Reencrypt, RotateCa,
    RotateOperators, ScheduleDestruction, Settings, SettingsPatch, Snapshot, Span, Token, Tokens,
    Tombstones, TransferLeader, UpdateKey, Version, Versions,
};

use crate::request::{Answered, encode};
use crate::{Client, Download, Error, Repeat, Request};

/// What became of each item of a batch, in its order.
type Results<T> = Vec<Result<T, Problem>>;

/// System
impl Client {
    /// What one node says of itself, whether it can serve or not: the pinned one, or the last good.
    pub async fn health(&self) -> Result<Health, Error> {
        let node = self.pinned(self.pinned.unwrap_or_else(|| self.good.load(Ordering::Relaxed)));
        let mut response = node.send(Request::get("/v1/sys/health")).await?;
        if response.problem().is_none() {
            response.status = http::StatusCode::OK;
        }
        response.json()
    }
}

/// Cluster
impl Client {
    pub async fn cluster(&self) -> Result<ClusterStatus, Error> {
        self.read("/v1/cluster").await
    }

    pub async fn create_join_token(&self, body: &CreateJoinToken) -> Result<JoinToken, Error> {
        self.change("/v1/cluster/join-tokens", Some(body)).await
    }

    pub async fn join_tokens(&self) -> Result<Vec<JoinTokenStatus>, Error> {
        let JoinTokens { join_tokens } = self.read("/v1/cluster/join-tokens").await?;
        Ok(join_tokens)
    }

    pub async fn grant_joins(&self, token: &str, body: &GrantJoins) -> Result<(), Error> {
        self.do_it(&format!("/v1/cluster/join-tokens/{}/grant", encode(token)), Some(body)).await
    }

    pub async fn revoke_join_token(&self, id: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/cluster/join-tokens/{}", encode(id))).await
    }

    pub async fn joins(&self) -> Result<Vec<Join>, Error> {
        let Joins { joins } = self.read("/v1/cluster/joins").await?;
        Ok(joins)
    }

    pub async fn approve(&self, join: &str, body: &Approve) -> Result<(), Error> {
        self.do_it(&format!("/v1/cluster/joins/{}/approve", encode(join)), Some(body)).await
    }

    pub async fn remove_node(&self, node: NodeId, force: bool) -> Result<(), Error> {
        let force = if force { "?force=true" } else { "" };
        self.delete(&format!("/v1/cluster/nodes/{node}{force}")).await
    }

    /// Takes a node out whose slot is in other hands: what it could open is exposed, and rotated.
    pub async fn evict_lost(&self, node: NodeId, force: bool) -> Result<(), Error> {
        let force = if force { "&force=true" } else { "" };
        self.delete(&format!("/v1/cluster/nodes/{node}?hsm_lost=true{force}")).await
    }

    /// A page of what the lost slot of a node and a copy of the log open still.
    pub async fn exposed(&self, node: NodeId, page: &Page) -> Result<ExposedVersions, Error> {
        let request = Request::get(format!("/v1/cluster/exposures/{node}"));
        Ok(self.call(with_page(request, page)).await?.value)
    }

    pub async fn transfer_leader(&self, to: Option<NodeId>) -> Result<(), Error> {
        self.do_it("/v1/cluster/transfer-leader", Some(&TransferLeader { to })).await
    }

    pub async fn cordon(&self, node: NodeId) -> Result<(), Error> {
        self.do_it::<()>(&format!("/v1/cluster/nodes/{node}/cordon"), None).await
    }

    pub async fn uncordon(&self, node: NodeId) -> Result<(), Error> {
        self.do_it::<()>(&format!("/v1/cluster/nodes/{node}/uncordon"), None).await
    }

    pub async fn rotate_kek(&self) -> Result<Kek, Error> {
        self.change::<(), _>("/v1/cluster/rotate-kek", None).await
    }

    pub async fn operators(&self) -> Result<ClusterOperators, Error> {
        self.read("/v1/cluster/operators").await
    }

    pub async fn rotate_operators(&self, body: &RotateOperators) -> Result<(), Error> {
        self.do_it("/v1/cluster/operators", Some(body)).await
    }

    /// What callers have to trust, where the cluster issues the nodes' certificates.
    pub async fn ca(&self) -> Result<ClusterCa, Error> {
        self.read("/v1/cluster/ca").await
    }

    pub async fn rotate_ca(&self, after: Option<Span>) -> Result<(), Error> {
        self.do_it("/v1/cluster/rotate-ca", Some(&RotateCa { after })).await
    }

    pub async fn drop_former_ca(&self) -> Result<(), Error> {
        self.delete("/v1/cluster/former-ca").await
    }

    pub async fn snapshot(&self) -> Result<Option<Snapshot>, Error> {
        self.change::<(), _>("/v1/cluster/snapshot", None).await
    }

    /// The whole state, encrypted for these recipients.
    pub async fn backup(&self, body: &MakeBackup) -> Result<Download, Error> {
        // Begun twice, it is taken twice, which changes nothing.
        self.download(Request::usage("/v1/cluster/backup").json(body)?).await
    }

    /// Everything that is destroyed or disabled, page by page, as one.
    pub async fn tombstones(&self) -> Result<Tombstones, Error> {
        let mut page = Page { page_size: Some(wire::PAGE_SIZE_MAX), ..Page::default() };
        let mut all: Option<Tombstones> = None;
        loop {
            let request = with_page(Request::get("/v1/cluster/tombstones"), &page);
            let mut next: Tombstones = self.call(request).await?.value;
            page.page_token = next.next_page_token.take();
            match &mut all {
                Some(all) if all.cluster_id != next.cluster_id => {
                    return Err(Error::Local("the nodes are of different clusters".to_owned()));
                }
                // As of the first page: whatever was forbidden then is on one of them.
                Some(all) => all.tombstones.append(&mut next.tombstones),
                None => all = Some(next),
            }
            if page.page_token.is_none() {
                return Ok(all.expect("there was a page"));
            }
        }
    }

    pub async fn settings(&self) -> Result<Settings, Error> {
        self.read("/v1/cluster/settings").await
    }

    pub async fn update_settings(&self, patch: &SettingsPatch) -> Result<Settings, Error> {
        let request = self.changing(Method::PATCH, "/v1/cluster/settings")?.json(patch)?;
        Ok(self.call(request).await?.value)
    }

    /// The recovery kits, with what is wrapped to each.
    pub async fn recovery_kits(&self) -> Result<Vec<RecoveryKit>, Error> {
        let RecoveryKits { recovery_kits } = self.read("/v1/cluster/recovery-kits").await?;
        Ok(recovery_kits)
    }

    pub async fn pin_recovery_kit(&self, body: &PinRecoveryKit) -> Result<RecoveryKit, Error> {
        self.change("/v1/cluster/recovery-kits", Some(body)).await
    }

    pub async fn drop_recovery_kit(&self, id: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/cluster/recovery-kits/{}", encode(id))).await
    }

    pub async fn create_token(&self, body: &CreateToken) -> Result<CreatedToken, Error> {
        self.change("/v1/tokens", Some(body)).await
    }

    /// One page of the tokens.
    pub async fn tokens(&self, page: &Page) -> Result<Tokens, Error> {
        let request = with_page(Request::get("/v1/tokens"), page);
        Ok(self.call(request).await?.value)
    }

    /// All tokens, page by page.
    pub async fn all_tokens(&self) -> Result<Vec<Token>, Error> {
        let mut page = Page { page_size: Some(wire::PAGE_SIZE_MAX), ..Page::default() };
        let mut all = Vec::new();
        loop {
            let Tokens { tokens, next_page_token } = self.tokens(&page).await?;
            all.extend(tokens);
            page.page_token = next_page_token;
            if page.page_token.is_none() {
                return Ok(all);
            }
        }
    }

    pub async fn revoke_token(&self, id: &str) -> Result<(), Error> {
        self.delete(&format!("/v1/tokens/{}", encode(id))).await
    }
}

/// Keys and their versions
impl Client {
    pub async fn create_key(&self, body: &CreateKey) -> Result<Key, Error> {
        self.change("/v1/keys", Some(body)).await
    }

    pub async fn key(&self, name: &str) -> Result<Key, Error> {
        self.read(&key_path(name, "")).await
    }

    /// One page of the keys that match.
    pub async fn keys(&self, list: &ListKeys) -> Result<Keys, Error> {
        let page = Page {
            page_size: list.page_size,
            page_token: list.page_token.clone(),
            consistency: list.consistency,
        };
        let mut request = with_page(Request::get("/v1/keys"), &page);
        if let Some(state) = list.state {
            request = request.query("state", state);
        }
        if let Some(algorithm) = list.algorithm {
            request = request.query("algorithm", algorithm);
        }
        if let Some(label) = &list.label {
            request = request.query("label", label);
        }
        Ok(self.call(request).await?.value)
    }

    /// All keys that match, page by page.
    pub async fn all_keys(&self, list: &ListKeys) -> Result<Vec<Key>, Error> {
        let mut list = ListKeys { page_size: Some(wire::PAGE_SIZE_MAX), ..list.clone() };
        let mut all = Vec::new();
        loop {
            let Keys { keys, next_page_token } = self.keys(&list).await?;
            all.extend(keys);
            list.page_token = next_page_token;
            if list.page_token.is_none() {
                return Ok(all);
            }
        }
    }

    /// All versions of a key, page by page.
    pub async fn versions(&self, name: &str) -> Result<Vec<Version>, Error> {
        let mut page = Page { page_size: Some(wire::PAGE_SIZE_MAX), ..Page::default() };
        let mut all = Vec::new();
        loop {
            let request = with_page(Request::get(key_path(name, "/versions")), &page);
            let Versions { versions, next_page_token } = self.call(request).await?.value;
            all.extend(versions);
            page.page_token = next_page_token;
            if page.page_token.is_none() {
                return Ok(all);
            }
        }
    }

    pub async fn update_key(&self, name: &str, patch: &UpdateKey) -> Result<Key, Error> {
        let request = self.changing(Method::PATCH, key_path(name, ""))?.json(patch)?;
        Ok(self.call(request).await?.value)
    }

    pub async fn rotate_key(&self, name: &str) -> Result<Key, Error> {
        self.change::<(), _>(&key_path(name, "/rotate"), None).await
    }

    pub async fn disable_key(&self, name: &str) -> Result<Key, Error> {
        self.change::<(), _>(&key_path(name, "/disable"), None).await
    }

    pub async fn enable_key(&self, name: &str) -> Result<Key, Error> {
        self.change::<(), _>(&key_path(name, "/enable"), None).await
    }

    pub async fn schedule_destruction(
        &self,
        name: &str,
        body: &ScheduleDestruction,
    ) -> Result<Key, Error> {
        self.change(&key_path(name, "/schedule-destruction"), Some(body)).await
    }

    pub async fn cancel_destruction(&self, name: &str) -> Result<Key, Error> {
        self.change::<(), _>(&key_path(name, "/cancel-destruction"), None).await
    }

    pub async fn disable_version(&self, name: &str, version: u32) -> Result<Version, Error> {
        self.change::<(), _>(&version_path(name, version, "disable"), None).await
    }

    pub async fn enable_version(&self, name: &str, version: u32) -> Result<Version, Error> {
        self.change::<(), _>(&version_path(name, version, "enable"), None).await
    }

    pub async fn schedule_version_destruction(
        &self,
        name: &str,
        version: u32,
        body: &ScheduleDestruction,
    ) -> Result<Version, Error> {
        self.change(&version_path(name, version, "schedule-destruction"), Some(body)).await
    }

    pub async fn cancel_version_destruction(
        &self,
        name: &str,
        version: u32,
    ) -> Result<Version, Error> {
        self.change::<(), _>(&version_path(name, version, "cancel-destruction"), None).await
    }
}

/// Uses of keys
impl Client {
    pub async fn encrypt(&self, key: &str, item: &Encrypt) -> Result<Ciphertext, Error> {
        self.usage(&key_path(key, "/encrypt"), item).await
    }

    pub async fn encrypt_batch(
        &self,
        key: &str,
        batch: Vec<Encrypt>,
    ) -> Result<Results<Ciphertext>, Error> {
        self.batch(&key_path(key, "/encrypt"), batch).await
    }

    pub async fn decrypt(&self, key: &str, item: &Decrypt) -> Result<Plaintext, Error> {
        self.usage(&key_path(key, "/decrypt"), item).await
    }

    pub async fn decrypt_batch(
        &self,
        key: &str,
        batch: Vec<Decrypt>,
    ) -> Result<Results<Plaintext>, Error> {
        self.batch(&key_path(key, "/decrypt"), batch).await
    }

    /// Decrypts with whichever key the ciphertext names.
    pub async fn decrypt_any(&self, item: &Decrypt) -> Result<Plaintext, Error> {
        self.usage("/v1/decrypt", item).await
    }

    pub async fn reencrypt(&self, key: &str, item: &Reencrypt) -> Result<Ciphertext, Error> {
        self.usage(&key_path(key, "/reencrypt"), item).await
    }

    pub async fn reencrypt_batch(
        &self,
        key: &str,
        batch: Vec<Reencrypt>,
    ) -> Result<Results<Ciphertext>, Error> {
        self.batch(&key_path(key, "/reencrypt"), batch).await
    }

    pub async fn data_key(&self, key: &str, body: &DataKeyRequest) -> Result<DataKey, Error> {
        self.usage(&key_path(key, "/data-key"), body).await
    }

    /// Decrypts for the recipient that the item names: only it can open the answer, with the
    /// request's id from the head in [`Sealed::info`].
    pub async fn decrypt_sealed(
        &self,
        key: &str,
        item: &recipient::Decrypt,
    ) -> Result<Answered<Sealed>, Error> {
        self.call(Request::usage(key_path(key, "/decrypt")).json(item)?).await
    }

    /// A data key for the recipient that the body names.
    pub async fn data_key_sealed(
        &self,
        key: &str,
        body: &recipient::DataKeyRequest,
    ) -> Result<Answered<Sealed>, Error> {
        self.call(Request::usage(key_path(key, "/data-key")).json(body)?).await
    }

    /// Randomness for the recipient that the body names.
    pub async fn random_sealed(
        &self,
        body: &recipient::RandomRequest,
    ) -> Result<Answered<Sealed>, Error> {
        self.call(Request::usage("/v1/random").json(body)?).await
    }

    pub async fn random(&self, bytes: u32) -> Result<Random, Error> {
        self.usage("/v1/random", &RandomRequest { bytes }).await
    }
}

/// The shapes all calls have.
impl Client {
    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        Ok(self.call(Request::get(path)).await?.value)
    }

    async fn usage<B, T>(&self, path: &str, body: &B) -> Result<T, Error>
    where
        B: serde::Serialize,
        T: DeserializeOwned,
    {
        Ok(self.call(Request::usage(path).json(body)?).await?.value)
    }

    async fn batch<B, T>(&self, path: &str, batch: Vec<B>) -> Result<Results<T>, Error>
    where
        B: serde::Serialize,
        T: DeserializeOwned,
    {
        match self.usage(path, &Input::Batch { batch }).await? {
            Answer::Batch { results } => Ok(results.into_iter().map(Outcome::into).collect()),
            Answer::One(_) => Err(Error::Protocol {
                address: path.to_owned(),
                what: "one answer to a batch".to_owned(),
            }),
        }
    }

    /// A change. Who asks one node once never repeats it, and takes up none of the idempotency keys
    /// that a principal may have in a day.
    fn changing(&self, method: Method, path: impl Into<String>) -> Result<Request, Error> {
        match self.pinned {
            Some(_) => Ok(Request::new(method, path, Repeat::Never)),
            None => Request::change(method, path),
        }
    }

    async fn change<B, T>(&self, path: &str, body: Option<&B>) -> Result<T, Error>
    where
        B: serde::Serialize,
        T: DeserializeOwned,
    {
        let mut request = self.changing(Method::POST, path)?;
        if let Some(body) = body {
            request = request.json(body)?;
        }
        Ok(self.call(request).await?.value)
    }

    /// A change whose answer says no more than that it is done.
    async fn do_it<B: serde::Serialize>(&self, path: &str, body: Option<&B>) -> Result<(), Error> {
        self.change::<B, IgnoredAny>(path, body).await.map(drop)
    }

    async fn delete(&self, path: &str) -> Result<(), Error> {
        let request = self.changing(Method::DELETE, path)?;
        self.call::<IgnoredAny>(request).await.map(drop)
    }
}

fn key_path(name: &str, rest: &str) -> String {
    format!("/v1/keys/{}{rest}", encode(name))
}

fn version_path(name: &str, version: u32, verb: &str) -> String {
    key_path(name, &format!("/versions/{version}/{verb}"))
}

fn with_page(mut request: Request, page: &Page) -> Request {
    if let Some(size) = page.page_size {
        request = request.query("page_size", size);
    }
    if let Some(token) = &page.page_token {
        request = request.query("page_token", token);
    }
    if let Some(consistency) = page.consistency {
        request = request.query("consistency", consistency);
    }
    request
}
