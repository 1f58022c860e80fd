-- Take up to n due jobs that nobody runs. A taken job's score moves to the end of its lease, so that it is not looked at
-- again while it runs, and is due again by itself if its worker dies.
--
-- KEYS[1]  the queue
-- ARGV[1]  prefix of all other keys     ARGV[2]  token     ARGV[3]  lease in ms     ARGV[4]  n
-- Returns the time, when the next job is due (or false), and for each taken job: id, payload (or false), its score, failed
-- tries, claims that were never finished, when it was asked to abort (or false).
local queue, prefix, token, lease, wanted = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local LOOK_AT_MOST = 1000

-- Whatever other software has put there must not stop the queue.
local function value(key)
    local got = redis.pcall('GET', key)
    return type(got) == 'string' and got or false
end

local reply, taken, looked = { now, false }, 0, 0
while taken < wanted and looked < LOOK_AT_MOST do
    local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', 0, wanted - taken)
    if #due == 0 then break end
    for i = 1, #due, 2 do
        local id, score = due[i], due[i + 1]
        local holder = prefix .. 'in-progress:' .. id
        local left = redis.call('PTTL', holder)
        looked = looked + 1
        if left == -2 then
            redis.call('SET', holder, token .. ':' .. score, 'PX', lease)
            redis.call('ZADD', queue, now + lease, id)
            local claims = redis.pcall('HINCRBY', prefix .. 'started', id, 1)
            taken = taken + 1
            reply[#reply + 1] = {
                id,
                value(prefix .. 'job:' .. id),
                score,
                tonumber(value(prefix .. 'retry:' .. id) or '0') or 0,
                type(claims) == 'number' and claims - 1 or 0,
                redis.call('ZSCORE', prefix .. 'abort', id),
            }
        else
            -- It runs: whoever lowered its score (a stock client's abort does) did not mean it to run twice.
            redis.call('ZADD', queue, now + (left == -1 and lease or math.max(left, 1)), id)
        end
    end
end
local following = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
reply[2] = following[2] or false
return reply
