-- Counts what a bucket holds, ends what has no producer any more, and drops from the indexes what was forgotten.
--
-- ARGV: the token of who asks
-- Returns how many run, how many have ended, the bytes that are held of the former, and of the latter; and the ids of
-- those that run under the token, and of those of them that were asked to stop: its inbox may have dropped that.

local function held(id)
  local known = redis.call('HMGET', base .. ':stream:' .. id, 'offset', 'dropped_offset')
  if not known[1] then
    return nil
  end
  return known[1] - known[2] + redis.call('HSTRLEN', base .. ':stream:' .. id, 'head')
end

local counts, bytes, own, stopped = { 0, 0 }, { 0, 0 }, {}, {}
redis.call('ZREMRANGEBYSCORE', base .. ':ended', '-inf', now())
for _, id in ipairs(redis.call('ZRANGE', base .. ':running', 0, -1)) do
  if not settle(id) then
    local known = redis.call('HMGET', base .. ':stream:' .. id, 'lease', 'stop')
    if known[1] == ARGV[1] then
      own[#own + 1] = id
      if known[2] then
        stopped[#stopped + 1] = id
      end
    end
  end
end
for place, index in ipairs({ base .. ':running', base .. ':ended' }) do
  for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
    local size = held(id)
    if size then
      counts[place] = counts[place] + 1
      bytes[place] = bytes[place] + size
    else
      redis.call('ZREM', index, id)
    end
  end
end
return { counts[1], counts[2], bytes[1], bytes[2], own, stopped }
