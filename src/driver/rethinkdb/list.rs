//! Listings of a table: see [`crate::driver::collections`] for their order. Each part of them is a
//! range of the key's index, in its order, and comes in batches.

use super::documents::{Documents, LONGEST, Table, digest};
use super::find::condition;
use super::link::Link;
use super::names::{self, EXACT, canonical};
use super::term::{self, Term};
use crate::driver::collections::{self, Named, Shelf, Source, Window, numbers};
use crate::driver::json::Json;
use crate::driver::{ErrorKind, Filter, Match, ObjectInfo, Result};
use crate::key::Key;
use async_trait::async_trait;
use futures::future::{try_join, try_join_all};
use futures::{StreamExt, stream};

/// What strings behind `=` look like, and no others than few.
const ODD: &str = "^=|/|^-?[0-9]+$";

/// A table that is listed, or what is sought in it.
struct Listed<'a> {
    link: &'a Link,
    table: Table,
    filter: Option<&'a Filter>,
    /// What the server looks at itself.
    condition: Option<Term>,
}

fn number(number: i64) -> Json {
    Json::Number(number.to_string())
}

impl Listed<'_> {
    fn named(&self, document: &Json) -> Option<Named<Json>> {
        let document = canonical(document);
        Some((self.table.name_of(&document)?, document))
    }

    async fn source(&self, range: Term, is_descending: bool) -> Result<Source<'_, Json>> {
        let ordered = range.ordered(&self.table.key, is_descending);
        let sought = match &self.condition {
            Some(condition) => ordered.filter(condition.clone()),
            None => ordered,
        };
        let cursor = self.link.cursor(&sought).await?;
        let documents = stream::try_unfold(cursor, |mut cursor| async move {
            let next = cursor.next().await?;
            Ok(next.map(|document| (document, cursor)))
        });
        let named = documents.filter_map(move |document| {
            let named = document.map(|document| self.named(&document));
            futures::future::ready(named.transpose())
        });
        Ok(named.boxed())
    }

    async fn of(&self, ids: &[Json]) -> Result<Vec<Named<Json>>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.table.term.clone().get_all(ids.iter());
        let mut cursor = self.link.cursor(&found).await?;
        let mut all = Vec::new();
        while let Some(document) = cursor.next().await? {
            all.extend(self.named(&document));
        }
        Ok(all)
    }

    fn numbers(&self, least: i64, greatest: i64) -> Term {
        let (least, greatest) = (number(least), number(greatest));
        let ends = (term::datum(&least), term::datum(&greatest));
        self.table.term.clone().between(ends.0, ends.1, true)
    }

    /// The least or the greatest whole number that may be there.
    async fn end(&self, is_greatest: bool) -> Result<Option<i64>> {
        let all = self.numbers(-EXACT, EXACT);
        let first = all.ordered(&self.table.key, is_greatest).limit(1);
        let found = self.link.all(&first.field(&self.table.key)).await?;
        Ok(found.first().and_then(|id| match id {
            Json::Number(text) => text.parse::<f64>().ok().map(|n| match is_greatest {
                true => n.ceil() as i64,
                false => n.floor() as i64,
            }),
            _ => None,
        }))
    }

    /// The names of keys of which a term holds.
    async fn names(&self, range: Term, holds: Term) -> Result<Vec<String>> {
        let holds = match &self.condition {
            Some(condition) => term::all(vec![holds, condition.clone()]),
            None => holds,
        };
        let ids = range.filter(holds).field(&self.table.key);
        let mut cursor = self.link.cursor(&ids).await?;
        let mut names = Vec::new();
        while let Some(id) = cursor.next().await? {
            let name = names::name(&canonical(&id));
            names.extend(name.starts_with(names::ESCAPE).then_some(name));
        }
        Ok(names)
    }
}

#[async_trait]
impl Shelf for Listed<'_> {
    type Document = Json;
    // Strings are sorted by their bytes.
    const DISPUTED: char = char::MAX;

    fn weight(document: &Json) -> usize {
        document.compact().len()
    }

    fn is_wanted(&self, document: &Json) -> Result<bool> {
        let wanted = |filter: &Filter| filter.matches(document.pretty().as_bytes());
        Ok(self.filter.is_none_or(wanted))
    }

    async fn sources(&self, window: &Window<'_>, floor: &str) -> Result<Vec<Source<'_, Json>>> {
        // No key is longer than this, and none is the floor then, but greater.
        let cut = (0..=LONGEST.min(floor.len())).rfind(|at| floor.is_char_boundary(*at));
        let floor = term::text(&floor[..cut.unwrap_or(0)]);
        let strings = self.table.term.clone();
        let strings = strings.between(floor, term::greatest(), false);
        let ends = try_join(self.end(false), self.end(true));
        let (strings, ends) = try_join(self.source(strings, false), ends).await?;
        let mut sources = vec![strings];
        if let (Some(least), Some(greatest)) = ends {
            let ranges = numbers(window.from(), (least, greatest));
            let ranges = ranges.into_iter().map(|range| {
                let all = self.numbers(range.least.max(-EXACT), range.greatest.min(EXACT));
                self.source(all, range.is_descending)
            });
            sources.extend(try_join_all(ranges).await?);
        }
        Ok(sources)
    }

    async fn strings(&self, ids: &[&str]) -> Result<Vec<Named<Json>>> {
        let ids = ids.iter().filter(|id| id.len() < LONGEST);
        let ids: Vec<_> = ids.map(|id| Json::String((*id).to_owned())).collect();
        let mut found = self.of(&ids).await?;
        // Each begins with the one before it.
        found.sort_by_key(|(name, _)| name.len());
        Ok(found)
    }

    async fn named(&self, names: &[String]) -> Result<Vec<Named<Json>>> {
        let ids: Vec<_> = names.iter().filter_map(|name| names::id(name)).collect();
        self.of(&ids).await
    }

    async fn escaped(&self) -> Result<Vec<String>> {
        let (table, id) = (&self.table.term, term::row().field(&self.table.key));
        let empty = || term::text("");
        // Whatever is no string stands before them; only numbers are of both kinds.
        let others = table.clone().between(term::least(), empty(), true);
        let odd = term::any(vec![
            id.clone().kind().differs(term::text("NUMBER")),
            id.clone().differs(id.clone().floor()),
            id.clone().beyond(EXACT),
        ]);
        let strings = table.clone().between(empty(), term::greatest(), false);
        let looks = (
            self.names(others, odd),
            self.names(strings, id.matches(ODD)),
        );
        let (mut names, strings) = try_join(looks.0, looks.1).await?;
        names.extend(strings);
        Ok(names)
    }
}

impl Documents {
    /// One page of a table; whether there are more.
    pub(super) async fn page(
        &self,
        collection: &str,
        window: Window<'_>,
        directory: &Key,
    ) -> Result<(Vec<(String, ObjectInfo)>, bool)> {
        let listed = Listed {
            link: &self.link,
            table: self.table(collection).await?,
            filter: None,
            condition: None,
        };
        let page = collections::page(&listed, &self.escaped, collection, &window);
        let (found, more) = page.await?;
        let entries = found.into_iter().map(|(name, document)| {
            let size = document.pretty().len() as u64;
            let key = directory.join(&name);
            let info = self.versions.info(&key, digest(&document), size);
            (name, info)
        });
        Ok((entries.collect(), more))
    }

    /// One page of what a filter matches in a table; whether there are more.
    pub(super) async fn find(
        &self,
        collection: &str,
        window: Window<'_>,
        directory: &Key,
        filter: &Filter,
    ) -> Result<(Vec<Match>, bool)> {
        let mut listed = Listed {
            link: &self.link,
            table: self.table(collection).await?,
            filter: Some(filter),
            condition: condition(filter),
        };
        let condition = listed.condition.as_ref().map(Term::query);
        let kept_as = format!("{collection}\0{}", condition.unwrap_or_default());
        let page = collections::page(&listed, &self.escaped, &kept_as, &window).await;
        let (found, more) = match page {
            // It does not take the condition: all are looked at here.
            Err(error)
                if listed.condition.is_some()
                    && matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Io) =>
            {
                listed.condition = None;
                collections::page(&listed, &self.escaped, collection, &window).await?
            }
            page => page?,
        };
        let found = found.into_iter().map(|(name, document)| Match {
            key: directory.join(&name),
            etag: digest(&document),
            text: document.pretty().into(),
        });
        Ok((found.collect(), more))
    }
}
