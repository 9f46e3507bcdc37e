-- KEYS: from, to. ARGV: form of both, etag of from or '', condition, etag. What is replaced gives its
-- time to live to what has none. 'kinds' is that it has another kind, and that nothing is changed:
-- what comes has to be written anew. A stream cannot be. Gives what the source had to live, too.
local from, to = KEYS[1], KEYS[2]
local kind, over = kind_of(from), kind_of(to)
if form_of(kind) ~= ARGV[1] then return { 'source-missing' } end
local told = facts(from, kind)
if ARGV[2] ~= '' and told[2] ~= ARGV[2] then return { 'source-changed', told[2] } end
local there = form_of(over) == ARGV[1]
if ARGV[3] == 'absent' and there then return { 'exists' } end
if ARGV[3] == 'match' then
  if not there then return { 'changed', '' } end
  local has = facts(to, over)
  if has[2] ~= ARGV[4] then return { 'changed', has[2] } end
end
if over ~= 'none' and not there then return { 'taken', over } end
if there and over ~= kind and kind ~= 'stream' then return { 'kinds' } end
local own, left = told[3], -1
if there then left = redis.call('PTTL', to) end
redis.call('RENAME', from, to)
if own < 0 and left > 0 then
  redis.call('PEXPIRE', to, left)
  told[3] = left
end
return { 'ok', told, own }
