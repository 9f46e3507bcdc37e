-- ARGV: from, its etag or '', to, condition, etag, 'keep' or 'replace', then names and values of facts
-- that come in place of those of the same name or, with 'replace', of all attributes.
local from, to = ARGV[2], ARGV[4]
local source, old = read(from), read(to)
local no = lost(from, source, 'there', ARGV[3]) or lost(to, old, ARGV[5], ARGV[6])
if no then return no end
local facts = unpacked(source.f)
if ARGV[7] == 'replace' then
  -- The names of all but attributes have one letter.
  for name in pairs(facts) do
    if #name > 1 then facts[name] = nil end
  end
end
for at = 8, #ARGV, 2 do facts[ARGV[at]] = ARGV[at + 1] end
if source.r ~= '' then share(source.b) end
local text = save(to, version(), now(), source.b, source.r, packed(facts))
drop(old)
if not old then enter(to) end
return { 'ok', text, '' }
