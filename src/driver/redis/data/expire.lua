-- KEYS: the key. ARGV: form, its etag or '', milliseconds to live, or '' for ever.
local key = KEYS[1]
local kind = kind_of(key)
if form_of(kind) ~= ARGV[1] then return { 'missing' } end
local told = facts(key, kind)
if ARGV[2] ~= '' and told[2] ~= ARGV[2] then return { 'changed', told[2] } end
if ARGV[3] == '' then
  redis.call('PERSIST', key)
else
  redis.call('PEXPIRE', key, ARGV[3])
end
told[3] = redis.call('PTTL', key)
return { 'ok', told }
