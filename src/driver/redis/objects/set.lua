-- ARGV: key, its etag or '', how many names go, those, then names and values of facts that come.
local key, gone = ARGV[2], tonumber(ARGV[4])
local old = read(key)
local no = lost(key, old, 'there', ARGV[3])
if no then return no end
local facts = unpacked(old.f)
for at = 5, 4 + gone do facts[ARGV[at]] = nil end
for at = 5 + gone, #ARGV, 2 do facts[ARGV[at]] = ARGV[at + 1] end
return { 'ok', save(key, version(), now(), old.b, old.r, packed(facts)), '' }
