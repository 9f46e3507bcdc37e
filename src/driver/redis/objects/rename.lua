-- ARGV: from, its etag or '', to, condition, etag, commits or ''.
local from, to = ARGV[2], ARGV[4]
local source, old = read(from), read(to)
local no = lost(from, source, 'there', ARGV[3]) or lost(to, old, ARGV[5], ARGV[6])
if no then return no end
local facts = source.f
if ARGV[7] ~= '' then
  facts = unpacked(facts)
  facts.c = ARGV[7]
  facts = packed(facts)
end
local text = save(to, source.e, source.t, source.b, source.r, facts)
redis.call('DEL', head(from))
drop(old)
if not old then enter(to) end
strike(from)
return { 'ok', text, '' }
