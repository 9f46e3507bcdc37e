-- KEYS: the key. ARGV: form, first byte, byte behind the last, if-match, if-none-match.
local key = KEYS[1]
local kind = kind_of(key)
if form_of(kind) ~= ARGV[1] then return { 'missing' } end
local told, all = facts(key, kind)
if ARGV[4] ~= '' and ARGV[4] ~= told[2] then return { 'changed', told[2] } end
if ARGV[5] == told[2] then return { 'same' } end
if kind == 'string' then told[5] = string.sub(all, tonumber(ARGV[2]) + 1, tonumber(ARGV[3])) end
return { 'ok', told }
