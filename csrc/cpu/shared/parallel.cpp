#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace s4_fast::cpu {
namespace {

// Threads that wait for work. Never destroyed: a process may end while they wait.
class Pool {
   public:
    // False, with nothing done, while another call has the threads.
    bool run(int64_t threads, int64_t count, Piece piece, void *context) {
        std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner) return false;
        while (started_ < threads - 1 && start()) {
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            piece_ = piece, context_ = context, count_ = count;
            next_.store(0, std::memory_order_relaxed);
            workers_ = threads < started_ + 1 ? threads : started_ + 1;
            working_ = workers_ - 1;
            ++job_;
        }
        wake_.notify_all();
        work(0);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return working_ == 0; });
        return true;
    }

   private:
    bool start() {
        try {
            std::thread([this, worker = started_ + 1, seen = job_] { serve(worker, seen); }).detach();
        } catch (const std::system_error &) {
            return false;  // no more threads to be had: those that there are do the work
        }
        ++started_;
        return true;
    }

    void serve(int64_t worker, uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return job_ != seen; });
            seen = job_;
            if (worker >= workers_) continue;
            lock.unlock();
            work(worker);
            lock.lock();
            if (--working_ == 0) done_.notify_one();
        }
    }

    void work(int64_t worker) {
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) piece_(context_, i, worker);
    }

    std::mutex owner_, mutex_;
    std::condition_variable wake_, done_;
    Piece piece_ = nullptr;
    void *context_ = nullptr;
    std::atomic<int64_t> next_{0};
    int64_t count_ = 0, started_ = 0, workers_ = 0, working_ = 0;
    uint64_t job_ = 0;
};

std::atomic<Pool *> pool{nullptr};

Pool &the_pool() {
    static std::mutex mutex;
    Pool *found = pool.load(std::memory_order_acquire);
    if (found == nullptr) {
        std::lock_guard<std::mutex> lock(mutex);
        found = pool.load(std::memory_order_relaxed);
        if (found == nullptr) {
#if defined(__unix__) || defined(__APPLE__)
            // The threads do not come along to a forked process (a data loader's worker, say): it starts its own.
            static const int registered =
                pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr, std::memory_order_release); });
            static_cast<void>(registered);
#endif
            found = new Pool;
            pool.store(found, std::memory_order_release);
        }
    }
    return *found;
}

}  // namespace

void run_pieces(int64_t threads, int64_t count, Piece piece, void *context) {
    if (threads > count) threads = count;
    if (threads > 1 && the_pool().run(threads, count, piece, context)) return;
    for (int64_t i = 0; i < count; ++i) piece(context, i, 0);
}

}  // namespace s4_fast::cpu
