-- ARGV: key, first byte, byte behind the last, if-match, if-none-match. Gives the head, and the
-- bytes where the body is one chunk.
local key, from, to = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local no = lost(key, 'there', ARGV[5])
if no then return no end
local all = redis.call('HGETALL', head(key))
local at = {}
for i = 1, #all, 2 do at[all[i]] = all[i + 1] end
if ARGV[6] ~= '' and at.e == ARGV[6] then return { 'same' } end
local bytes = ''
local first = string.match(at.r, '^(%d+),1,%d+;$')
if first and from < to and from < tonumber(at.s) then
  bytes = redis.call('GETRANGE', chunk(at.b, first), ARGV[3], string.format('%.0f', to - 1))
end
return { 'ok', all, bytes }
