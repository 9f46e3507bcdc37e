-- ARGV: key, first byte, byte behind the last, if-match, if-none-match. Gives the head, and the
-- bytes where the body is one chunk.
local key, from, to = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local old = read(key)
local no = lost(key, old, 'there', ARGV[5])
if no then return no end
if ARGV[6] ~= '' and old.e == ARGV[6] then return { 'same' } end
local bytes = ''
local first = string.match(old.r, '^(%d+),1,%d+;$')
if first and from < to then
  bytes = redis.call('GETRANGE', chunk(old.b, first), ARGV[3], string.format('%.0f', to - 1))
end
return { 'ok', old.text, bytes }
