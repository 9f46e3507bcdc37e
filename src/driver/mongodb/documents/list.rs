//! Listings of a collection: see [`crate::driver::collections`] for their order.

use super::super::names::{self, DISPUTED};
use super::find::conditions;
use super::{Documents, decoded, digest, shown};
use crate::driver::collections::{self, Named, Shelf, Source, Window, least, numbers};
use crate::driver::{ErrorKind, Filter, Match, ObjectInfo, Result};
use crate::key::Key;
use ::mongodb::Cursor;
use ::mongodb::bson::oid::ObjectId;
use ::mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};

/// A collection that is listed, or what is sought in it.
struct Listed<'a> {
    documents: &'a Documents,
    all: ::mongodb::Collection<RawDocumentBuf>,
    filter: Option<&'a Filter>,
    /// What the server looks at itself.
    conditions: Vec<Document>,
}

fn name_of(document: &RawDocumentBuf) -> Option<String> {
    let id = document.get("_id").ok().flatten()?;
    Some(names::name(&Bson::try_from(id).ok()?))
}

fn number_of(document: &RawDocumentBuf) -> Option<i64> {
    let id = document.get("_id").ok().flatten()?;
    match Bson::try_from(id).ok()? {
        Bson::Int32(n) => Some(i64::from(n)),
        Bson::Int64(n) => Some(n),
        Bson::Double(n) => Some(n as i64),
        _ => None,
    }
}

impl Listed<'_> {
    /// A filter for which the conditions hold too.
    fn holding(&self, mut filter: Document) -> Document {
        if !self.conditions.is_empty() {
            filter.insert("$and", self.conditions.clone());
        }
        filter
    }

    async fn find(&self, ids: Document, order: i32, limit: i64) -> Result<Cursor<RawDocumentBuf>> {
        self.find_by(ids, order, limit, None).await
    }

    /// The same, so many at a time.
    async fn find_by(
        &self,
        ids: Document,
        order: i32,
        limit: i64,
        batch: Option<u32>,
    ) -> Result<Cursor<RawDocumentBuf>> {
        let mut found = self
            .all
            .find(self.holding(doc! { "_id": ids }))
            .limit(limit);
        if let Some(batch) = batch {
            found = found.batch_size(batch);
        }
        let found = found.sort(doc! { "_id": order }).await;
        found.map_err(|cause| self.documents.link.error(&cause))
    }

    fn source(&self, cursor: Cursor<RawDocumentBuf>) -> Source<'_, RawDocumentBuf> {
        let named = |document| Ok(name_of(&document).map(|name| (name, document)));
        let all = cursor.map_err(|cause| self.documents.link.error(&cause));
        all.try_filter_map(move |document| futures::future::ready(named(document)))
            .boxed()
    }

    async fn of(&self, ids: Vec<Bson>) -> Result<Vec<Named<RawDocumentBuf>>> {
        let found = self.find(doc! { "$in": ids }, 1, 0).await?;
        self.source(found).try_collect().await
    }
}

#[async_trait]
impl Shelf for Listed<'_> {
    type Document = RawDocumentBuf;
    const DISPUTED: char = DISPUTED;

    fn weight(document: &RawDocumentBuf) -> usize {
        document.as_bytes().len()
    }

    fn is_wanted(&self, document: &RawDocumentBuf) -> Result<bool> {
        let Some(filter) = self.filter else {
            return Ok(true);
        };
        Ok(filter.matches(shown(&decoded(document)?).as_bytes()))
    }

    async fn sources(
        &self,
        window: &Window<'_>,
        floor: &str,
    ) -> Result<Vec<Source<'_, RawDocumentBuf>>> {
        let limit = match self.filter {
            // What the server sends need not match.
            Some(_) => 0,
            None => window.limit as i64 + 2,
        };
        let from = window.from();
        // How many of them one page takes is not known: some have other names.
        let batch = (limit > 0).then(|| u32::try_from(limit).unwrap_or(u32::MAX));
        let strings = self.find_by(doc! { "$gte": floor }, 1, 0, batch);
        let mut sources = vec![self.source(strings.await?)];
        if let Some(least) = least(from, b"0123456789abcdef", 24)
            && let Ok(least) = ObjectId::parse_str(&least)
        {
            sources.push(self.source(self.find(doc! { "$gte": least }, 1, limit).await?));
        }
        // Whole numbers, between the least and the greatest.
        let mut ends = Vec::new();
        for (order, most) in [(1, i64::MIN), (-1, i64::MAX)] {
            let any = doc! { "$gte": i64::MIN, "$lte": i64::MAX };
            let found = self.find(any, order, 1).await?;
            let found: Vec<_> = self.source(found).try_collect().await?;
            let end = found.first();
            ends.extend(end.map(|(_, end)| number_of(end).unwrap_or(most)));
        }
        let [first, last] = ends[..] else {
            return Ok(sources);
        };
        for range in numbers(from, (first, last)) {
            let ids = doc! { "$gte": range.least, "$lte": range.greatest };
            let order = if range.is_descending { -1 } else { 1 };
            // Fractions between them have other names.
            sources.push(self.source(self.find_by(ids, order, 0, batch).await?));
        }
        Ok(sources)
    }

    async fn strings(&self, ids: &[&str]) -> Result<Vec<Named<RawDocumentBuf>>> {
        self.of(ids.iter().map(|id| Bson::from(*id)).collect())
            .await
    }

    async fn named(&self, names: &[String]) -> Result<Vec<Named<RawDocumentBuf>>> {
        let ids = names.iter().filter_map(|name| names::id(name));
        self.of(ids.collect()).await
    }

    async fn escaped(&self) -> Result<Vec<String>> {
        let all = self.all.find(self.holding(doc! {}));
        let all = all.projection(doc! { "_id": 1 }).await;
        let all = all.map_err(|cause| self.documents.link.error(&cause))?;
        let names = self.source(all).try_filter_map(|(name, _)| {
            let escaped = name.starts_with(names::ESCAPE).then_some(name);
            futures::future::ready(Ok(escaped))
        });
        names.try_collect().await
    }
}

impl Documents {
    /// One page of a collection; whether there are more.
    pub(in crate::driver::mongodb) async fn page(
        &self,
        collection: &str,
        window: Window<'_>,
        directory: &Key,
    ) -> Result<(Vec<(String, ObjectInfo)>, bool)> {
        let listed = Listed {
            documents: self,
            all: self.collection(collection),
            filter: None,
            conditions: Vec::new(),
        };
        let page = collections::page(&listed, &self.escaped, collection, &window);
        let (found, more) = page.await?;
        let entries = found.into_iter().map(|(name, document)| {
            let size = shown(&decoded(&document)?).len() as u64;
            let info = self
                .versions
                .info(&directory.join(&name), digest(&document), size);
            Ok((name, info))
        });
        Ok((entries.collect::<Result<_>>()?, more))
    }

    /// One page of what a filter matches in a collection; whether there are more.
    pub(in crate::driver::mongodb) async fn find(
        &self,
        collection: &str,
        window: Window<'_>,
        directory: &Key,
        filter: &Filter,
    ) -> Result<(Vec<Match>, bool)> {
        let mut listed = Listed {
            documents: self,
            all: self.collection(collection),
            filter: Some(filter),
            conditions: conditions(filter),
        };
        let kept_as = format!("{collection}\0{:?}", listed.conditions);
        let page = collections::page(&listed, &self.escaped, &kept_as, &window).await;
        let (found, more) = match page {
            // It does not know the conditions: all are looked at here.
            Err(error)
                if !listed.conditions.is_empty()
                    && matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Io) =>
            {
                listed.conditions.clear();
                collections::page(&listed, &self.escaped, collection, &window).await?
            }
            page => page?,
        };
        let found = found.into_iter().map(|(name, document)| {
            Ok(Match {
                key: directory.join(&name),
                etag: digest(&document),
                text: shown(&decoded(&document)?).into(),
            })
        });
        Ok((found.collect::<Result<_>>()?, more))
    }
}
