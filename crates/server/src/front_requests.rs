//! Requests that are for what is served besides vaults.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::request::Parts;
use zeroize::Zeroizing;

use super::front::{Front, FrontReply, Head};
use super::http::{Listener, read};
use super::reply::Reply;
use super::request_span;
use super::shared::{Cost, Lane, Shared};
use super::transfer::TransferReply;

impl Listener {
    /// Answers a request that is for what is served besides vaults.
    pub(crate) async fn front(
        &self,
        front: Arc<dyn Front>,
        peer: SocketAddr,
        parts: &Parts,
        body: Body,
    ) -> Reply {
        let head = Head::of(parts, peer);
        if front.is_transfer(&head) {
            return self.transfer(front, head, parts, body).await;
        }
        let admitted = match front.admit(&self.shared.site(), &head) {
            Ok(admitted) => admitted,
            Err(reply) => return (*reply).into(),
        };
        let body = match read(&parts.headers, body, admitted.body, self.patience).await {
            Ok(body) => body,
            Err(error) => return error.into(),
        };
        let span = request_span::of(parts);
        let work = move |shared: &Arc<Shared>| {
            let _entered = span.enter();
            let answering = traces::Span::begin(front.name(&head));
            let _entered = answering.enter();
            Ok(front.answer(&shared.site(), &head, &body))
        };
        let lane = admitted.identity.map_or(Lane::Tokens, Lane::Management);
        let answer = self.shared.blocking(lane, Cost::Usual, work).await;
        answer.map_or_else(Reply::from, Reply::from)
    }

    /// Answers a request for the bytes of a disk.
    async fn transfer(
        &self,
        front: Arc<dyn Front>,
        head: Head,
        parts: &Parts,
        body: Body,
    ) -> Reply {
        let (peer, head) = (head.peer, Arc::new(head));
        let sent = |reply: TransferReply| reply.into_reply(&self.connections, peer, self.patience);
        let asked = (Arc::clone(&front), Arc::clone(&head));
        let admit =
            move |shared: &Arc<Shared>| Ok(asked.0.admit_transfer(&shared.site(), &asked.1));
        let lane = Lane::Transfers;
        let limit = match self.shared.blocking(lane, Cost::Usual, admit).await {
            Ok(Ok(limit)) => limit,
            Ok(Err(refusal)) => return sent(refusal),
            Err(error) => return error.into(),
        };
        let body = match read(&parts.headers, body, limit, self.patience).await {
            Ok(body) => Zeroizing::new(body),
            Err(error) => return error.into(),
        };
        let span = request_span::of(parts);
        let work = move |shared: &Arc<Shared>| {
            let _entered = span.enter();
            let answering = traces::Span::begin("transfer");
            let _entered = answering.enter();
            Ok(front.transfer(&shared.site(), &head, body))
        };
        let answer = self
            .shared
            .blocking(Lane::Transfers, Cost::Usual, work)
            .await;
        answer.map_or_else(Reply::from, sent)
    }
}

impl From<FrontReply> for Reply {
    fn from(reply: FrontReply) -> Self {
        let status = StatusCode::from_u16(reply.status);
        Self {
            status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            body: reply.body,
            text: reply.text,
            retry_after: reply.retry_after,
            headers: reply.headers,
            ..Self::default()
        }
    }
}
