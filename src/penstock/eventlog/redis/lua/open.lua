-- Creates a stream, or finds the one that runs under its key.
--
-- ARGV: token, epoch, id, nonce, owner, "" or "=" and the key, head, id that may be replaced, age [ms], ms to keep it,
-- "" or "full" if there is no room for another
-- Returns "lost", "taken", "full", "joined" and the id, or "created" and the id of the one that was replaced.

local token, epoch, id, nonce, owner, named, head, replacing, age, keep, room = unpack(ARGV)

if not lives(token) then
  return { 'lost' }
end
local stream = base .. ':stream:' .. id
local key = named ~= '' and string.sub(named, 2)
local replaced = ''
if key then
  local held = redis.call('GET', pointer(owner, key))
  if held == id and redis.call('HGET', stream, 'nonce') == nonce then
    return { 'created', '' } -- by a call whose answer was lost
  end
  if held and not settle(held) then
    if held ~= replacing then
      return { 'joined', held }
    end
    replaced = held
  end
elseif redis.call('HGET', stream, 'nonce') == nonce then
  return { 'created', '' }
end
if redis.call('EXISTS', stream) == 1 then
  return { 'taken' }
end
if room ~= '' then
  return { 'full' }
end
local time = redis.call('TIME')
local opened = text(time[1] * 1000000 + time[2]) -- so fine that the order in which they were opened can be told
redis.call('HSET', stream, 'owner', owner, 'epoch', epoch, 'lease', token, 'nonce', nonce, 'head', head, 'last', '0',
  'offset', '0', 'dropped', '0', 'dropped_offset', '0', 'opened', opened, 'age', age)
redis.call('PEXPIRE', stream, keep)
redis.call('ZADD', base .. ':running', opened, id)
if key then
  redis.call('HSET', stream, 'key', key)
  redis.call('SET', pointer(owner, key), id, 'PX', keep)
end
if replaced ~= '' then
  local holder = redis.call('HGET', base .. ':stream:' .. replaced, 'lease')
  redis.call('HSET', base .. ':stream:' .. replaced, 'stop', '1')
  tell(holder, 'stop', replaced)
end
return { 'created', replaced }
