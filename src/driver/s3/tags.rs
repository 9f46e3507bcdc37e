//! Tags. A copy on the server keeps them; of what is put or uploaded they are said anew, and asked
//! for before that where an answer told that there are some.

use super::refusal::{Failed, Purpose};
use super::store::Call;
use super::{Bucket, meta, site, xml};
use crate::driver::{Precondition, PutOptions};
use crate::key::Key;
use http::{HeaderMap, Method};

impl Bucket {
    /// Adds the tags that a new object is to have: those of the one that it is like, or replaces.
    pub(super) async fn keep_tags(
        &self,
        headers: &mut HeaderMap,
        key: &Key,
        options: &PutOptions,
    ) -> Result<(), Failed> {
        if !meta::has_tags(&options.attributes) {
            return Ok(());
        }
        let of = match (&options.like, &options.precondition) {
            (Some(like), _) => like,
            (None, Precondition::IfAbsent) => return Ok(()),
            (None, Precondition::None | Precondition::IfMatch(_)) => key,
        };
        let purpose = Purpose::of("tags", Some(of));
        let mut call = Call::new(Method::GET, of.as_bytes());
        call.query = "tagging=";
        let body = match self.store.ask(&self.target, &call).await {
            Ok((_, body)) => body,
            // Where it matters the condition of the put will tell.
            Err(Failed::Refused(refusal)) if refusal.object_missing() => return Ok(()),
            Err(failed) => return Err(purpose.error(failed).into()),
        };
        let tags = xml::tags(&body).map_err(|error| purpose.name(error))?;
        let words = tags.iter().map(|(name, value)| {
            let (name, value) = (site::encode_value(name), site::encode_value(value));
            format!("{name}={value}")
        });
        let words: Vec<String> = words.collect();
        if !words.is_empty() {
            headers.insert(meta::TAGS, meta::ascii(&words.join("&"))?);
        }
        Ok(())
    }
}
