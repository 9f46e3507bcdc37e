-- ARGV: directory, what names in it begin with, 'after' or 'all', behind which key of the directory,
-- 'fold' or 'deep', limit. Gives whether there is more, the keys, and the head of each; that of what
-- is folded is empty.
local fold, limit = ARGV[6] == 'fold', tonumber(ARGV[7])
local keys, heads, more = {}, {}, 0

-- Whether the page is full.
local function walk(directory, begin, after)
  local from = '-'
  if begin ~= '' then from = '[' .. begin end
  if after then
    local slash = string.find(after, '/', 1, true)
    if slash then
      local below = string.sub(after, 1, slash)
      if not fold and string.sub(below, 1, #begin) == begin and
          walk(directory .. below, '', string.sub(after, slash + 1)) then
        return true
      end
      from = '(' .. below
    else
      from = '(' .. after
    end
  end
  while true do
    local batch = limit - #keys + 1
    local found = redis.call('ZRANGEBYLEX', names(directory), from, '+', 'LIMIT', 0, batch)
    for _, name in ipairs(found) do
      if string.sub(name, 1, #begin) ~= begin then return false end
      if string.sub(name, -1) == '/' and not fold then
        if walk(directory .. name, '', nil) then return true end
      elseif #keys == limit then
        more = 1
        return true
      else
        keys[#keys + 1] = directory .. name
        heads[#heads + 1] = head(directory .. name)
      end
      from = '(' .. name
    end
    if #found < batch then return false end
  end
end

local after = nil
if ARGV[4] == 'after' then after = ARGV[5] end
walk(ARGV[2], ARGV[3], after)
if #keys > 0 then
  heads = redis.call('MGET', unpack(heads))
  for at, key in ipairs(keys) do
    -- An object whose key ends so is listed within its directory, without a name.
    if fold and string.sub(key, -1) == '/' and key ~= ARGV[2] then heads[at] = '' end
  end
end
return { 'ok', more, keys, heads }
